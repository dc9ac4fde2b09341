"""GRPO: the final reward of an episode, compared with those of the same item's other episodes.

    A(every token of episode i) = (R_i - mean of its group) / standard deviation of its group
    L = L_clip with these advantages + kl_coef * mean KL(start || pi)

Shao et al. 2024 (arXiv 2402.03300, eq. 3 and 4); the clipped loss and the KL estimate are those of
`ppo`. A baseline: it needs an environment and knows no expert. Differs from the paper: the mean is
over all tokens of an update, not first over each episode's; the reference is the policy at the
start of the round, and the divergence that from it, not to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepagent.algorithms.ppo import PPOConfig, Targets, ValueHead, improve
from stepagent.backends.training import Metrics, OptimizerConfig, read_trees
from stepagent.inspection import StepTree
from stepagent.policy import Policy


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
    """Episodes in one update."""


def group_advantages(rewards: Tensor, groups: Sequence[object]) -> Tensor:
    """(episodes,) each reward by how many standard deviations it is above its group's mean.

    0 in groups whose rewards are all the same.
    """
    advantages = torch.zeros_like(rewards)
    for group in set(groups):
        own = torch.tensor([g == group for g in groups])
        if (rewards[own] == rewards[own][0]).all():
            continue  # rounding would make a deviation of nothing
        centred = rewards[own] - rewards[own].mean()
        advantages[own] = centred / centred.square().mean().sqrt()
    return advantages


def grpo(
    policy: Policy,
    episodes: Sequence[StepTree],
    rewards: Tensor,
    groups: Sequence[object],
    config: GRPOConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> Metrics:
    """One round in place; returns facts about its rewards.

    `rewards` (episodes,) are final; episodes of an item have the same group.
    """
    advantages = group_advantages(rewards, groups)
    old_logprobs = read_trees(
        policy.layers, [e.tree for e in episodes], lambda packed: (policy.read(packed).logprobs,)
    )
    sizes = [len(e.is_end) for e in episodes]
    targets = Targets(
        old_logprobs=[logprobs for (logprobs,) in old_logprobs],
        advantages=[a.expand(size) for a, size in zip(advantages, sizes, strict=True)],
        returns=[torch.zeros(size, dtype=policy.layers.dtype) for size in sizes],
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
    improve(policy, ValueHead(policy.layers), episodes, targets, settings, seed=seed, log=log)
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "mixed_groups": len({g for g, a in zip(groups, advantages.tolist(), strict=True) if a})
        / len(set(groups)),
    }
