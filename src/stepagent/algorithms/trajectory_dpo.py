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

from stepagent.algorithms.dpo import ROUNDING, dpo_loss
from stepagent.algorithms.sft import sft_loss
from stepagent.bounds import AMOUNT, COUNT, Above, check_bounds
from stepagent.inspection import StepTree, num_expert_tokens, path_logprobs
from stepagent.model.packs import batch_packs, gather
from stepagent.model.policy import Policy
from stepagent.model.updates import Measured, Metrics, OptimizerConfig, fit


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
    pairs: Sequence[StepTree],
    config: TrajectoryDPOConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> None:
    """One round of updates in place on pairs of the expert's and the agent's episode.

    The two episodes of a pair share a tree, so they are forwarded together. The reference is the
    policy as it is given. Raises `TrainingError` and `OutOfMemory` as `Updater.update` does.
    """
    found = path_logprobs(policy, pairs)
    reference = [_of_episodes(own, p.is_expert) for own, p in zip(found, pairs, strict=True)]

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Measured]]:
        return _losses(policy, pairs, reference, batch, config)

    fit(policy.layers, losses, len(pairs), config, stage="Trajectory DPO", seed=seed, log=log)


def _of_episodes(logprobs: Tensor, is_expert: Tensor) -> Tensor:
    """(paths,) of one pair -> (1, 2), the sums over the expert's and over the agent's episode."""
    return torch.stack([logprobs[is_expert].sum(), logprobs[~is_expert].sum()])[None]


def _losses(
    policy: Policy,
    pairs: Sequence[StepTree],
    reference: Sequence[Tensor],
    batch: Sequence[int],
    config: TrajectoryDPOConfig,
) -> Iterator[tuple[Tensor, Measured]]:
    """The parts of a batch's loss, averaged over its pairs and its expert tokens."""
    num_tokens = sum(num_expert_tokens(pairs[i]) for i in batch)
    device = policy.model.device
    for packed, own in batch_packs(policy.layers, [p.tree for p in pairs], batch):
        logprobs = policy.read(packed).logprobs
        experts = [pairs[i].is_expert.to(device) for i in own]
        by_pair = torch.split(packed.sum_by_path(logprobs), [len(e) for e in experts])
        now = torch.cat([_of_episodes(*pair) for pair in zip(by_pair, experts, strict=True)])
        then = gather(reference, own, device)
        found = dpo_loss(now[:, 0], now[:, 1], then[:, 0], then[:, 1], config.beta)
        preference = found.loss.sum() / len(batch)
        anchor = sft_loss(logprobs[torch.cat(experts)[packed.target_path]], num_tokens)
        loss = preference + config.sft_coef * anchor
        margins = found.chosen_rewards - found.rejected_rewards
        yield (
            loss,
            {
                "loss": loss,
                "tokens": packed.num_tokens,
                "dpo_loss": preference,
                "sft_loss": anchor,
                "reward_margin": margins.sum() / len(batch),
                "reward_accuracy": (margins > ROUNDING).sum(dtype=torch.float64) / len(batch),
            },
        )
