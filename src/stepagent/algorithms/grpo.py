"""GRPO: the final reward of an episode, compared with those of the same item's other episodes.

    A(every token of episode i) = (R_i - mean of its group) / standard deviation of its group
    L = L_clip with these advantages + kl_coef * mean KL(start || pi)

Shao et al. 2024 (arXiv 2402.03300, eq. 3 and 4); the clipped loss and the KL estimate are those of
`ppo`. A baseline: it needs an environment and knows no expert. A group is one prefix tree, since
its episodes begin alike, and always in one update: gradients are clipped, and of episodes that were
clipped apart the good ones would not weigh against the bad ones. Differs from the paper: the mean
is over all tokens of an update, not first over each episode's; the reference is the policy at the
start of the round, and the divergence that from it, not to it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stepagent.algorithms.ppo import kl_estimate, ppo_loss
from stepagent.bounds import AMOUNT, COUNT, Above, check_bounds
from stepagent.inspection import StepTree
from stepagent.model.policy import Policy
from stepagent.model.updates import (
    Metrics,
    OptimizerConfig,
    batch_packs,
    fit,
    gather,
    read_trees,
)


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """One round of GRPO on played episodes."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """AdamW settings, anew in each round."""
    group_size: int = 4
    """Episodes of each item."""
    epochs: int = 1
    """Passes over the episodes."""
    clip_range: float = 0.2
    """How far a token's probability ratio may move before its gradient is cut."""
    kl_coef: float = 0.04
    """Weight of the divergence from the round's starting policy."""
    batch_size: int = 8
    """Groups in one update."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers that cannot be."""
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
    """(episodes,) each reward of a group by how many standard deviations it is above the mean.

    0 where all rewards are the same.
    """
    if (rewards == rewards[0]).all():
        return torch.zeros_like(rewards)  # rounding would make a deviation of nothing
    centred = rewards - rewards.mean()
    return centred / centred.square().mean().sqrt()


class Targets(NamedTuple):
    """What stays fixed during a round, for each group."""

    old_logprobs: list[Tensor]
    """(targets,)"""
    advantages: list[Tensor]
    """(paths,) those of the paths' episodes"""


def grpo(
    policy: Policy,
    groups: Sequence[StepTree],
    rewards: Sequence[Tensor],
    config: GRPOConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> Metrics:
    """One round in place; returns facts about its rewards.

    A group holds the episodes of an item; `rewards` has the final rewards (episodes,) of each.
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

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Metrics]]:
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
) -> Iterator[tuple[Tensor, Metrics]]:
    """The parts of one update's loss, a mean over all tokens of the batch."""
    num_tokens = sum(len(path) for i in batch for path in groups[i].tree.paths)
    device = policy.model.device
    for packed, trees in batch_packs(policy.layers, [g.tree for g in groups], batch):
        reading = policy.read(packed)
        old_logprobs = gather(targets.old_logprobs, trees, device)
        advantages = gather(targets.advantages, trees, device)[packed.target_path]
        clip = ppo_loss(reading.logprobs, old_logprobs, advantages, config.clip_range)
        policy_loss = clip.loss.sum() / num_tokens
        kl = kl_estimate(reading.logprobs - old_logprobs).sum() / num_tokens
        loss = policy_loss + config.kl_coef * kl
        yield (
            loss,
            {
                "loss": loss.item(),
                "tokens": packed.num_tokens,
                "policy_loss": policy_loss.item(),
                "entropy": (reading.entropies.sum() / num_tokens).item(),
                "approx_kl": float(clip.approx_kl.sum()) / num_tokens,
                "clipfrac": float(clip.clipped.sum()) / num_tokens,
            },
        )
