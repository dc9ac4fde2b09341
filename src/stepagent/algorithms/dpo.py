"""Implicit reflection: step-wise DPO that prefers the expert's action to the agent's own.

    delta = beta * [(log pi(a|s) - log ref(a|s)) - (log pi(a'|s) - log ref(a'|s))]
    L     = mean(-log sigma(delta)) + sft_coef * NLL(a)

Rafailov et al. 2023 (arXiv 2305.18290, eq. 7) on single steps: s is an expert state, a the expert's
action, a' the agent's. The implicit step reward is r(s, a) = beta * log(pi(a|s) / ref(a|s)).
Differences from the paper: the pairs of a trajectory share its prefix tree; the reference is the
policy at the start of the round; pairs with a = a' are dropped; the SFT anchor is on by default,
because step-wise DPO can collapse without it (ETO, arXiv 2403.02502, table 4).
Command: `stepagent reflect`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stepagent.algorithms.sft import sft_loss
from stepagent.bounds import AMOUNT, COUNT, Above, check_bounds
from stepagent.inspection import StepTree, expert_path_of_step, num_expert_tokens, path_logprobs
from stepagent.model.packs import batch_packs, gather
from stepagent.model.policy import Policy
from stepagent.model.updates import Measured, Metrics, OptimizerConfig, fit

ROUNDING = 1e-4
"""Margins up to this count as 0: at the start of a round policy and reference are equal, and the
sign of their rounding error depends on the processor."""


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """One round of step-wise DPO."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """AdamW settings; optimizer and schedule are reset in each round."""
    beta: float = 0.2
    """Strength of the constraint to the reference; scale of the implicit reward."""
    sft_coef: float = 1.0
    """Weight of the SFT anchor, the negative log-likelihood of expert actions; 0 for none."""
    epochs: int = 2
    """Passes over the practised steps."""
    batch_size: int = 8
    """Trajectories in each update, each with all its steps."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(
            self, {"beta": Above(0), "sft_coef": AMOUNT, "epochs": COUNT, "batch_size": COUNT}
        )


class DPOLoss(NamedTuple):
    """The loss of each pair and the implicit rewards of both actions, all (pairs,)."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> DPOLoss:
    """The loss from log-probabilities of whole actions (pairs,) under policy and reference."""
    chosen_rewards = beta * (chosen - ref_chosen)
    rejected_rewards = beta * (rejected - ref_rejected)
    loss = -F.logsigmoid(chosen_rewards - rejected_rewards)
    return DPOLoss(loss, chosen_rewards.detach(), rejected_rewards.detach())


def dpo(
    policy: Policy,
    practised: Sequence[StepTree],
    config: DPOConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> None:
    """One round of updates in place; the reference is the policy as it is given.

    Raises `TrainingError` and `OutOfMemory` as `Updater.update` does.
    """
    reference = path_logprobs(policy, practised)

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Measured]]:
        return _losses(policy, practised, reference, batch, config)

    fit(policy.layers, losses, len(practised), config, stage="Step-wise DPO", seed=seed, log=log)


def _losses(
    policy: Policy,
    practised: Sequence[StepTree],
    reference: Sequence[Tensor],
    batch: Sequence[int],
    config: DPOConfig,
) -> Iterator[tuple[Tensor, Measured]]:
    """The parts of a batch's loss, averaged over its pairs and its expert tokens."""
    num_pairs = max(1, sum(int((~practised[i].is_same).sum()) for i in batch))
    num_tokens = sum(num_expert_tokens(practised[i]) for i in batch)
    device = policy.model.device
    for packed, trees in batch_packs(policy.layers, [p.tree for p in practised], batch):
        is_expert = gather([p.is_expert for p in practised], trees, device)
        rejected = (~gather([p.is_same for p in practised], trees, device)).nonzero()[:, 0]
        chosen = expert_path_of_step(is_expert)[rejected]
        ref = gather(reference, trees, device)
        token_logprobs = policy.read(packed).logprobs
        logprobs = packed.sum_by_path(token_logprobs)
        pairs = dpo_loss(
            logprobs[chosen], logprobs[rejected], ref[chosen], ref[rejected], config.beta
        )
        preference = pairs.loss.sum() / num_pairs
        anchor = sft_loss(token_logprobs[is_expert[packed.target_path]], num_tokens)
        margins = pairs.chosen_rewards - pairs.rejected_rewards
        loss = preference + config.sft_coef * anchor
        yield (
            loss,
            {
                "loss": loss,
                "tokens": packed.num_tokens,
                "dpo_loss": preference,
                "sft_loss": anchor,
                "reward_chosen": pairs.chosen_rewards.sum() / num_pairs,
                "reward_rejected": pairs.rejected_rewards.sum() / num_pairs,
                "reward_margin": margins.sum() / num_pairs,
                "reward_accuracy": (margins > ROUNDING).sum(dtype=torch.float64) / num_pairs,
            },
        )


def implicit_rewards(
    now: Sequence[Tensor], reference: Sequence[Tensor], beta: float
) -> list[Tensor]:
    """For each tree r(s, a) of its paths (paths,), from log-probabilities now and before."""
    return [beta * (a - b) for a, b in zip(now, reference, strict=True)]
