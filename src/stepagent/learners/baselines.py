"""Baselines that learn from episodes of their own, which reflection does without.

Each first plays the items of the demonstrations in the environment, and learns from the reward of a
whole episode, not of a step.

    RFT         clone the demonstrations and the agent's own successes
    ETO, SPIN   prefer the expert's whole episode to the agent's own (trajectory DPO)
    PPO, GRPO   maximise the final reward
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stepagent.algorithms.grpo import GRPOConfig, grpo
from stepagent.algorithms.ppo import PPOConfig, ppo, read_before
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.algorithms.trajectory_dpo import TrajectoryDPOConfig, trajectory_dpo
from stepagent.algorithms.value_head import ValueHead
from stepagent.bounds import COUNT, check_bounds
from stepagent.inspection import rollout_tree
from stepagent.learners.base import Log, Stateless
from stepagent.model.policy import Policy
from stepagent.practice import Lesson
from stepagent.rendering.renderer import RenderedTrajectory


@dataclass(frozen=True, kw_only=True)
class RFTConfig:
    """One round of rejection sampling."""

    episodes: int = 4
    """Episodes per item played before learning. Each round plays other items, so that a round has
    as many episodes as there are demonstrations."""
    sft: SFTConfig = SFTConfig(epochs=1)
    """Fine-tuning on demonstrations and successes."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"episodes": COUNT})

    def learner(self, novice: Policy) -> "RFT":
        """Carries nothing from round to round."""
        return RFT(self)


@dataclass(frozen=True, kw_only=True)
class ETOConfig(TrajectoryDPOConfig):
    """One round of ETO."""

    def learner(self, novice: Policy) -> "ETO":
        """Every round has the policy it starts from as its reference."""
        return ETO(self)


@dataclass(frozen=True, kw_only=True)
class SPINConfig(TrajectoryDPOConfig):
    """One round of SPIN."""

    def learner(self, novice: Policy) -> "SPIN":
        """Every round has the policy it starts from as its reference."""
        return SPIN(self)


@dataclass(frozen=True, kw_only=True)
class FinalPPOConfig(PPOConfig):
    """One round of PPO on final rewards."""

    def learner(self, novice: Policy) -> "FinalPPO":
        """The value head starts at zero."""
        return FinalPPO(self, novice)


@dataclass(frozen=True, kw_only=True)
class FinalGRPOConfig(GRPOConfig):
    """One round of GRPO on final rewards."""

    def learner(self, novice: Policy) -> "GRPO":
        """Carries nothing from round to round."""
        return GRPO(self)


class RFT(Stateless):
    """Rejection-sampling fine-tuning (Yuan et al. 2023, arXiv 2308.01825), of whole episodes.

    Equal successes of an item count once, as in the paper; those equal to a demonstration do not.
    """

    practises = False

    def __init__(self, config: RFTConfig) -> None:
        """One `RFTConfig` for every round."""
        self.config = config
        self.explores = config.episodes

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Fine-tunes on the demonstrations and the successes."""
        known = {(d.trajectory.id, d.actions) for d in lesson.demonstrations}
        succeeded = {
            (e.trajectory.id, e.actions): e
            for e in lesson.explored
            if e.trajectory.success and (e.trajectory.id, e.actions) not in known
        }
        log("train", {"successes": len(succeeded)})
        both = [*lesson.demonstrations, *succeeded.values()]
        sft(policy, both, self.config.sft, seed=seed, log=lambda m: log("train", m))
        return None


class ETO(Stateless):
    """Exploration-based trajectory optimization (Song et al. 2024, arXiv 2403.02502).

    Prefers the expert's episode to the agent's own where the agent's has the lower score.
    """

    practises = False
    explores = 1

    def __init__(self, config: TrajectoryDPOConfig) -> None:
        """One `TrajectoryDPOConfig` for every round."""
        self.config = config

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Trajectory DPO on the pairs; without pairs the policy stays as it is."""
        pairs = [
            rollout_tree([agent], expert)
            for expert, agent in _by_item(lesson)
            if self.prefers(expert, agent)
        ]
        log("train", {"pairs": len(pairs)})
        if pairs:
            trajectory_dpo(policy, pairs, self.config, seed=seed, log=lambda m: log("train", m))
        return None

    def prefers(self, expert: RenderedTrajectory, agent: RenderedTrajectory) -> bool:
        """Whether the two are a pair."""
        return _final_reward(agent) < _final_reward(expert)


class SPIN(ETO):
    """Self-play fine-tuning (Chen et al. 2024, arXiv 2401.01335): every episode is a pair."""

    def prefers(self, expert: RenderedTrajectory, agent: RenderedTrajectory) -> bool:
        """Unless both do the same."""
        # Different ids can spell the same text.
        done = ([step.action for step in t.trajectory.steps] for t in (expert, agent))
        return next(done) != next(done)


class FinalPPO(Stateless):
    """PPO (Schulman et al. 2017) with the final score as the only reward."""

    practises = False
    explores = 1

    def __init__(self, config: PPOConfig, policy: Policy) -> None:
        """The value head starts at zero."""
        self.config = config
        self.value_head = ValueHead(policy.layers)

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Maximises the final reward of the explored episodes."""
        episodes = [rollout_tree([e]) for e in lesson.explored]
        rewards = [
            final_reward * e.is_end
            for e, final_reward in zip(episodes, map(_final_reward, lesson.explored), strict=True)
        ]
        before = read_before(policy, self.value_head, episodes)
        facts = ppo(
            policy, self.value_head, episodes, rewards, before, self.config, seed=seed,
            log=lambda m: log("ppo", m),
        )  # fmt: skip
        log("ppo", facts)
        return None

    def save(self, folder: Path) -> None:
        """The value head as safetensors."""
        self.value_head.save(folder)

    def load(self, folder: Path) -> None:
        """Reads it."""
        self.value_head.load(folder)


class GRPO(Stateless):
    """Group-relative policy optimization of the final score (Shao et al. 2024)."""

    practises = False

    def __init__(self, config: GRPOConfig) -> None:
        """One `GRPOConfig` for every round."""
        self.config = config
        self.explores = config.group_size

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Reinforces episodes that score above the average of their item."""
        groups = lesson.explored_by_item.values()
        facts = grpo(
            policy,
            [rollout_tree(episodes) for episodes in groups],
            [torch.tensor([_final_reward(e) for e in episodes]) for episodes in groups],
            self.config,
            seed=seed,
            log=lambda m: log("train", m),
        )
        log("train", facts)
        return None


def _final_reward(episode: RenderedTrajectory) -> float:
    """0 to 1."""
    return (episode.trajectory.score or 0.0) / 100


def _by_item(lesson: Lesson) -> Iterator[tuple[RenderedTrajectory, RenderedTrajectory]]:
    """Each explored episode with the demonstration of its item."""
    expert = {d.trajectory.id: d for d in lesson.demonstrations}
    for episode in lesson.explored:
        yield expert[episode.trajectory.id], episode
