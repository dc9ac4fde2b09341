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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepagent.algorithms.ppo import PPOConfig, Targets, improve
from stepagent.algorithms.value_head import ValueHead
from stepagent.bounds import AMOUNT, COUNT, Above, check_bounds
from stepagent.inspection import StepTree
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics, OptimizerConfig, read_trees


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
        returns=[torch.zeros(len(g.is_end), dtype=policy.layers.dtype) for g in groups],
    )
    settings = PPOConfig(
        optimizer=config.optimizer,
        epochs=config.epochs,
        clip_range=config.clip_range,
        vf_coef=0.0,
        ent_coef=0.0,
        kl_coef=config.kl_coef,
        sft_coef=0.0,
        batch_size=config.batch_size,
    )
    # Without a value loss the head stays at zero; it only fills the place of PPO's.
    head = ValueHead(policy.layers)
    improve(policy, head, groups, targets, settings, stage="GRPO", seed=seed, log=log)
    given = torch.cat(list(rewards))
    return {
        "reward_mean": float(given.mean()),
        "reward_std": float(given.std(correction=0)),
        "mixed_groups": sum(bool(a.any()) for a in advantages) / len(groups),
    }
