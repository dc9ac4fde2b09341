"""Inverse reflection, second half: PPO on step rewards.

    ratio  = pi(token) / pi_old(token), or of a whole action
    L_clip = -mean min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A)
    L      = L_clip + vf_coef * mean (V(s) - R)^2 - ent_coef * mean entropy
             + kl_coef * mean KL(start || pi) + sft_coef * NLL(expert action)

Schulman et al. 2017 (arXiv 1707.06347, eq. 7 and 9). The entropy is that of the next-token
distributions along an action; their sum is the causal entropy of the step (Ziebart et al. 2010).
Ratios and clipping are per token unless `ratio` says otherwise; the tokens of an action share its
advantage. V is computed at the state's last token. In inspection the next state is the expert's
whatever the agent does, so each practised step is a GAE episode of length one, with advantage =
step reward - V(s). Episodes that the agent played itself are GAE episodes as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stepagent.algorithms.sft import sft_loss
from stepagent.algorithms.value_head import ValueHead
from stepagent.bounds import AMOUNT, COUNT, SHARE, Above, check_bounds
from stepagent.inspection import StepTree, num_expert_tokens
from stepagent.model.packs import batch_packs, gather, read_trees
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import Pack
from stepagent.model.updates import Measured, Metrics, OptimizerConfig, fit


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """One round of PPO (arXiv 1707.06347) on practised steps."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """AdamW settings; optimizer and schedule are reset in each round."""
    epochs: int = 2
    """Passes over the practised steps."""
    ratio: Literal["token", "step"] = "token"
    """Clip the probability ratio of each token, or of the whole action of a step."""
    clip_range: float = 0.2
    """How far a ratio may move from 1 before its gradient is cut off."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    ent_coef: float = 0.01
    """Weight of the causal-entropy bonus."""
    kl_coef: float = 0.0
    """Weight of the KL divergence from the policy at the start of the round."""
    sft_coef: float = 1.0
    """Weight of the SFT anchor, the negative log-likelihood of expert actions."""
    gae_lambda: float = 0.95
    """Lambda of GAE in played episodes: 1 trusts later rewards only, 0 the value head only."""
    whiten: bool = True
    """Standardize the round's advantages to mean 0 and standard deviation 1."""
    batch_size: int = 8
    """Trajectories in each update."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(
            self,
            {
                "epochs": COUNT,
                "clip_range": Above(0),
                "vf_coef": AMOUNT,
                "ent_coef": AMOUNT,
                "kl_coef": AMOUNT,
                "sft_coef": AMOUNT,
                "gae_lambda": SHARE,
                "batch_size": COUNT,
            },
        )


def gae(rewards: Tensor, values: Tensor, ends: Tensor, *, gae_lambda: float) -> Tensor:
    """Advantages (steps,) of consecutive steps; `ends` (steps,) is true where an episode ends.

    Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16), without a
    discount. Raises ValueError unless the last step ends an episode.
    """
    if len(ends) and not ends[-1]:
        raise ValueError("gae: the last step has to end its episode")
    advantages = torch.zeros_like(rewards)
    following = rewards.new_zeros(())
    next_value = rewards.new_zeros(())
    for t in range(len(rewards) - 1, -1, -1):
        if ends[t]:
            following, next_value = torch.zeros_like(following), torch.zeros_like(next_value)
        delta = rewards[t] + next_value - values[t]
        following = delta + gae_lambda * following
        advantages[t], next_value = following, values[t]
    return advantages


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """Estimates KL(old || new), elementwise, from log(new / old) of the old policy's samples.

    The estimate ratio - 1 - log ratio is unbiased and never negative (Schulman 2020, k3).
    """
    return log_ratio.exp() - 1 - log_ratio


class PPOLoss(NamedTuple):
    """The clipped loss of each token or action, and diagnostics of the update."""

    loss: Tensor
    approx_kl: Tensor
    """Estimate of KL(old || new)."""
    clipped: Tensor
    """bool, true where the ratio is outside the clip range."""


def ppo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float
) -> PPOLoss:
    """Clipped surrogate loss, elementwise, of tokens (targets,) or whole actions (paths,)."""
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -torch.minimum(ratio * advantages, clipped_ratio * advantages)
    with torch.no_grad():
        return PPOLoss(loss, kl_estimate(log_ratio), (ratio - 1).abs() > clip_range)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant.

    NaN if the returns do not vary.
    """
    variance = returns.var()
    return float(1 - (returns - values).var() / variance) if variance > 0 else float("nan")


class Before(NamedTuple):
    """The policy and the value head before a round, on each tree."""

    logprobs: list[Tensor]
    """(targets,) log-probabilities of path tokens."""
    values: list[Tensor]
    """(paths,) values of their states."""


def read_before(policy: Policy, value_head: ValueHead, practised: Sequence[StepTree]) -> Before:
    """Reads the policy and its value head as they are, without gradient."""

    def read(packed: Pack) -> tuple[Tensor, Tensor]:
        reading = policy.read(packed)
        return reading.logprobs, value_head.values(reading)

    found = read_trees(policy.layers, [p.tree for p in practised], read)
    return Before(*(list(part) for part in zip(*found, strict=True)))


class Targets(NamedTuple):
    """What stays fixed during a round, for each tree."""

    old_logprobs: list[Tensor]
    """(targets,)"""
    advantages: list[Tensor]
    """(paths,), 0 on expert paths"""
    returns: list[Tensor]
    """(paths,)"""


def ppo(
    policy: Policy,
    value_head: ValueHead,
    practised: Sequence[StepTree],
    rewards: Sequence[Tensor],
    before: Before,
    config: PPOConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> Metrics:
    """One round of updates in place; returns metrics of its rewards and values.

    `rewards` holds the step rewards (paths,) of each tree, `before` what `read_before` found on
    them. Expert paths contribute to the anchor only. Raises `TrainingError` and `OutOfMemory` as
    `Updater.update` does.
    """
    targets, facts = _advantages(practised, rewards, before, config)

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Measured]]:
        return _losses(policy, value_head, practised, targets, batch, config)

    fit(
        policy.layers,
        losses,
        len(practised),
        config,
        stage="PPO",
        seed=seed,
        log=log,
        apart=value_head.parameters(),
    )
    return facts


def _advantages(
    practised: Sequence[StepTree],
    rewards: Sequence[Tensor],
    before: Before,
    config: PPOConfig,
) -> tuple[Targets, Metrics]:
    """The fixed targets of the round, and metrics of rewards and value head."""
    sizes = [len(r) for r in rewards]
    is_agent = ~torch.cat([p.is_expert for p in practised])
    is_end = torch.cat([p.is_end for p in practised])
    given = torch.cat(list(rewards))
    predicted = torch.cat(before.values)
    advantages = gae(given, predicted, is_end, gae_lambda=config.gae_lambda)
    returns = advantages + predicted
    metrics = {
        "reward_mean": float(given[is_agent].mean()),
        "reward_std": float(given[is_agent].std(correction=0)),
        "explained_variance": explained_variance(predicted[is_agent], returns[is_agent]),
    }
    if config.whiten:
        own = advantages[is_agent]
        advantages = (advantages - own.mean()) / (own.std(correction=0) + 1e-8)
    advantages = torch.where(is_agent, advantages, 0.0)
    return Targets(
        before.logprobs, list(torch.split(advantages, sizes)), list(torch.split(returns, sizes))
    ), metrics


def _losses(
    policy: Policy,
    value_head: ValueHead,
    practised: Sequence[StepTree],
    targets: Targets,
    batch: Sequence[int],
    config: PPOConfig,
) -> Iterator[tuple[Tensor, Measured]]:
    """The parts of a batch's loss, averaged over agent tokens, states and expert tokens."""
    num_expert = sum(num_expert_tokens(practised[i]) for i in batch)
    num_agent = sum(len(path) for i in batch for path in practised[i].tree.paths) - num_expert
    num_expert = max(1, num_expert)  # there are none in played episodes
    num_actions = sum(int((~practised[i].is_expert).sum()) for i in batch)
    device = policy.model.device
    for packed, trees in batch_packs(policy.layers, [p.tree for p in practised], batch):
        is_expert = gather([p.is_expert for p in practised], trees, device)
        by_agent = ~is_expert[packed.target_path]
        reading, entropies = policy.read_with_entropies(packed)
        if not config.ent_coef:
            entropies = entropies.detach()  # a metric only
        advantages = gather(targets.advantages, trees, device)
        old_logprobs = gather(targets.old_logprobs, trees, device)
        if config.ratio == "step":
            now, old = map(packed.sum_by_path, (reading.logprobs, old_logprobs))
            own, total = ~is_expert, num_actions
        else:
            now, old = reading.logprobs, old_logprobs
            own, total, advantages = by_agent, num_agent, advantages[packed.target_path]
        clip = ppo_loss(now[own], old[own], advantages[own], config.clip_range)
        returns = gather(targets.returns, trees, device)
        value_loss = (value_head.values(reading) - returns)[~is_expert].square().sum() / num_actions
        entropy = entropies[by_agent].sum() / num_agent
        kl = kl_estimate((reading.logprobs - old_logprobs)[by_agent]).sum() / num_agent
        anchor = sft_loss(reading.logprobs[~by_agent], num_expert)
        policy_loss = clip.loss.sum() / total
        loss = (
            policy_loss
            + config.vf_coef * value_loss
            - config.ent_coef * entropy
            + config.kl_coef * kl
            + config.sft_coef * anchor
        )
        yield (
            loss,
            {
                "loss": loss,
                "tokens": packed.num_tokens,
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "entropy": entropy,
                "sft_loss": anchor,
                "approx_kl": clip.approx_kl.sum() / total,
                "clipfrac": clip.clipped.sum(dtype=torch.float64) / total,
            },
        )
