"""DPO on whole episodes: prefers the expert's to the agent's own of the same item (ETO, SPIN).

    delta = beta * [(log pi(tau_e) - log ref(tau_e)) - (log pi(tau_a) - log ref(tau_a))]
    L     = mean(-log sigma(delta)) + sft_coef * NLL(actions of tau_e)

log pi(tau) is the sum over all action tokens of an episode. ETO (Song et al. 2024, arXiv
2403.02502, eq. 5) uses the pairs in which the agent's episode has the lower final reward; SPIN
(Chen et al. 2024, arXiv 2401.01335, eq. 4.7) uses all pairs, whatever the reward. Both are
baselines: they need an environment, and one preference must account for all steps of an episode.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stepagent.algorithms.dpo import ROUNDING
from stepagent.algorithms.sft import sft_loss
from stepagent.bounds import AMOUNT, COUNT, Above, check_bounds
from stepagent.inspection import StepTree
from stepagent.model.policy import Policy
from stepagent.model.updates import (
    Metrics,
    OptimizerConfig,
    batch_packs,
    fit,
    read_paths,
)


@dataclass(frozen=True, kw_only=True)
class TrajectoryDPOConfig:
    """One round of DPO on pairs of episodes."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """AdamW settings; optimizer and schedule are reset in each round."""
    beta: float = 0.1
    """Strength of the constraint to the reference."""
    sft_coef: float = 0.0
    """Weight of the negative log-likelihood of expert actions."""
    epochs: int = 1
    """Passes over the pairs."""
    batch_size: int = 4
    """Pairs in each update."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(
            self, {"beta": Above(0), "sft_coef": AMOUNT, "epochs": COUNT, "batch_size": COUNT}
        )


def trajectory_dpo(
    policy: Policy,
    pairs: Sequence[tuple[StepTree, StepTree]],
    config: TrajectoryDPOConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> None:
    """One round of updates in place on pairs of the expert's and the agent's episode.

    The trees have no branches. The reference is the policy as it is given. Raises `TrainingError`
    and `OutOfMemory` as `Updater.update` does.
    """
    trees = [episode for pair in pairs for episode in pair]
    reference = _logprobs(policy, trees)

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Metrics]]:
        return _losses(policy, trees, reference, batch, config)

    fit(policy.layers, losses, len(pairs), config, stage="Trajectory DPO", seed=seed, log=log)


def _logprobs(policy: Policy, trees: Sequence[StepTree]) -> Tensor:
    """(episodes,) log-probability of all actions of each episode, without gradient."""
    found = read_paths(policy.layers, [t.tree for t in trees], policy.path_logprobs)
    return torch.stack([logprobs.sum() for logprobs in found])


def _losses(
    policy: Policy,
    trees: Sequence[StepTree],
    reference: Tensor,
    batch: Sequence[int],
    config: TrajectoryDPOConfig,
) -> Iterator[tuple[Tensor, Metrics]]:
    """The parts of a batch's loss.

    The two episodes of a pair may be in different packs, so their margin delta is computed first,
    without gradient. The gradient of -log sigma(delta) is -sigma(-delta) times that of delta, which
    is a weighted sum over episodes.
    """
    chosen = torch.tensor([2 * pair for pair in batch])
    members = torch.stack([chosen, chosen + 1], dim=1).flatten().tolist()
    now = _logprobs(policy, [trees[i] for i in members]) - reference[members]
    margins = config.beta * (now[::2] - now[1::2])
    pulls = config.beta * torch.sigmoid(-margins) / len(batch)
    weight = dict(zip(members, torch.stack([-pulls, pulls], dim=1).flatten().tolist(), strict=True))
    num_tokens = sum(len(path) for i in chosen.tolist() for path in trees[i].tree.paths)
    preference = float(-F.logsigmoid(margins).mean())
    facts = {
        "loss": preference,
        "dpo_loss": preference,
        "reward_margin": float(margins.mean()),
        "reward_accuracy": float((margins > ROUNDING).float().mean()),
        "sft_loss": 0.0,
    }
    for packed, own in batch_packs(policy.layers, [t.tree for t in trees], members):
        logprobs = policy.read(packed).logprobs
        paths = [(weight[i], i % 2 == 0) for i in own for _ in trees[i].tree.paths]
        weights = logprobs.new_tensor([w for w, _ in paths])[packed.target_path]
        by_expert = torch.tensor([e for _, e in paths], device=logprobs.device)[packed.target_path]
        anchor = sft_loss(logprobs[by_expert], num_tokens)
        facts["loss"] += config.sft_coef * anchor.item()
        facts["sft_loss"] += anchor.item()
        facts["tokens"] = packed.num_tokens
        yield (weights * logprobs).sum() + config.sft_coef * anchor, facts
        facts = dict.fromkeys(facts, 0.0)  # counted once, since the metrics of the parts are summed
