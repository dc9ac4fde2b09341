"""GRPO: an episode's final reward relative to those of other episodes of the same item.

    A(every token of episode i) = (R_i - mean of its group) / standard deviation of its group
    L = L_clip with these advantages + kl_coef * mean KL(start || pi)

Shao et al. 2024 (arXiv 2402.03300, eq. 3 and 4); the clipped loss and the KL estimate are those of
`ppo`. A baseline: it needs an environment and uses no expert. The episodes of a group share their
beginning, so a group is one prefix tree. It is never split over updates: gradients are clipped for
each update, and good episodes must be weighed against bad ones before that. Differences from the
paper: the loss is averaged over all tokens of an update, not first within each episode; the
reference is the policy at the start of the round, and the divergence is KL(start || pi), not
KL(pi || start).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stepagent.algorithms.ppo import kl_estimate, ppo_loss
from stepagent.bounds import AMOUNT, COUNT, Above, check_bounds
from stepagent.inspection import StepTree
from stepagent.model.packs import batch_packs, gather, read_trees
from stepagent.model.policy import Policy
from stepagent.model.updates import Measured, Metrics, OptimizerConfig, fit


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """One round of GRPO on the agent's own episodes."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """AdamW settings; optimizer and schedule are reset in each round."""
    group_size: int = 4
    """Episodes played of each item."""
    epochs: int = 1
    """Passes over the episodes."""
    clip_range: float = 0.2
    """How far a token's probability ratio may move from 1 before its gradient is cut off."""
    kl_coef: float = 0.04
    """Weight of the KL divergence from the policy at the start of the round."""
    batch_size: int = 8
    """Groups in each update."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(
            self,
            {
                "group_size": COUNT,
                "epochs": COUNT,
                "clip_range": Above(0),
                "kl_coef": AMOUNT,
                "batch_size": COUNT,
            },
        )


def group_advantages(rewards: Tensor) -> Tensor:
    """(episodes,) the standardized rewards of a group; 0 if all rewards are equal."""
    if (rewards == rewards[0]).all():
        return torch.zeros_like(rewards)  # rounding may leave a tiny deviation
    centred = rewards - rewards.mean()
    return centred / centred.square().mean().sqrt()


class Targets(NamedTuple):
    """What stays fixed during a round, for each group."""

    old_logprobs: list[Tensor]
    """(targets,)"""
    advantages: list[Tensor]
    """(paths,) advantage of each path's episode"""


def grpo(
    policy: Policy,
    groups: Sequence[StepTree],
    rewards: Sequence[Tensor],
    config: GRPOConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> Metrics:
    """One round of updates in place; returns metrics of its rewards.

    A group holds the episodes of one item, `rewards` their final rewards (episodes,). Raises
    `TrainingError` and `OutOfMemory` as `Updater.update` does.
    """
    advantages = [group_advantages(own) for own in rewards]
    old_logprobs = read_trees(
        policy.layers, [g.tree for g in groups], lambda packed: (policy.read(packed).logprobs,)
    )
    episode_of = [g.is_end.cumsum(0) - g.is_end.long() for g in groups]
    targets = Targets(
        old_logprobs=[logprobs for (logprobs,) in old_logprobs],
        advantages=[a[steps] for a, steps in zip(advantages, episode_of, strict=True)],
    )

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Measured]]:
        return _losses(policy, groups, targets, batch, config)

    fit(policy.layers, losses, len(groups), config, stage="GRPO", seed=seed, log=log)
    given = torch.cat(list(rewards))
    return {
        "reward_mean": float(given.mean()),
        "reward_std": float(given.std(correction=0)),
        "mixed_groups": sum(bool(a.any()) for a in advantages) / len(groups),
    }


def _losses(
    policy: Policy,
    groups: Sequence[StepTree],
    targets: Targets,
    batch: Sequence[int],
    config: GRPOConfig,
) -> Iterator[tuple[Tensor, Measured]]:
    """The parts of a batch's loss, averaged over all its action tokens."""
    num_tokens = sum(len(path) for i in batch for path in groups[i].tree.paths)
    device = policy.model.device
    for packed, trees in batch_packs(policy.layers, [g.tree for g in groups], batch):
        reading, entropies = policy.read_with_entropies(packed)
        old_logprobs = gather(targets.old_logprobs, trees, device)
        advantages = gather(targets.advantages, trees, device)[packed.target_path]
        clip = ppo_loss(reading.logprobs, old_logprobs, advantages, config.clip_range)
        policy_loss = clip.loss.sum() / num_tokens
        kl = kl_estimate(reading.logprobs - old_logprobs).sum() / num_tokens
        loss = policy_loss + config.kl_coef * kl
        yield (
            loss,
            {
                "loss": loss,
                "tokens": packed.num_tokens,
                "policy_loss": policy_loss,
                "entropy": entropies.detach().sum() / num_tokens,
                "approx_kl": clip.approx_kl.sum() / num_tokens,
                "clipfrac": clip.clipped.sum(dtype=torch.float64) / num_tokens,
            },
        )
