"""Inverse reflection: a discriminator tells expert from agent, and its output rewards PPO."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from stepagent.algorithms.discriminator import (
    DiscriminatorConfig,
    HeldOut,
    expert_logits,
    held_out,
    step_rewards,
    train_discriminator,
)
from stepagent.algorithms.ppo import PPOConfig, ppo, read_before
from stepagent.algorithms.value_head import ValueHead
from stepagent.bounds import COUNT, check_bounds
from stepagent.inspection import StepTree, path_logprobs
from stepagent.learners.base import LearnerStopped, Log
from stepagent.model.policy import Policy
from stepagent.practice import Lesson

DISCRIMINATOR = "discriminator"
"""The folder of its model, in the folder of a round."""


@dataclass(frozen=True, kw_only=True)
class InverseConfig:
    """One round of inverse reflection: discriminator, PPO on its rewards (arXiv 1710.11248)."""

    states: Literal["practice", "rollout"] = "practice"
    """Where the agent acts: in the expert's states (practice), or in an environment, in states of
    its own (rollout)."""
    episodes: int = 1
    """Episodes per item and round if it acts in an environment."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Training of the discriminator, which tells the expert's actions from the agent's."""
    ppo: PPOConfig = PPOConfig()
    """Policy updates on the discriminator's step rewards."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"episodes": COUNT})

    def learner(self, novice: Policy) -> "Inverse":
        """The discriminator starts as a copy of the novice."""
        return Inverse(self, novice)


class Inverse:
    """Trains the discriminator on the round's practice, then the policy by PPO."""

    practises = True

    def __init__(self, config: InverseConfig, policy: Policy) -> None:
        """The discriminator starts as a copy of the policy, the value head at zero."""
        self.config = config
        self.explores = config.episodes if config.states == "rollout" else 0
        self.discriminator = policy.copy("discriminator")
        self.value_head = ValueHead(policy.layers)
        self.is_warm = False

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Returns the step rewards of the held-out paths."""
        trees, held_out_trees = self._trees(lesson), lesson.held_out_trees
        before = read_before(policy, self.value_head, trees)
        agent = [p.tree.sum_by_path(own) for p, own in zip(trees, before.logprobs, strict=True)]
        held_out_logits = self._trained(policy, lesson, agent, seed=seed, log=log)
        if lesson.compared is not held_out_trees:
            held_out_logits = self._logits(policy, held_out_trees)
        rewards = self._rewards(expert_logits(self.discriminator, trees, agent))
        facts = ppo(
            policy, self.value_head, trees, rewards, before, self.config.ppo, seed=seed,
            log=lambda m: log("ppo", m),
        )  # fmt: skip
        log("ppo", facts)
        return self._rewards(held_out_logits)

    def measure(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> None:
        """Trains the discriminator on the lesson; logs its accuracy on held-out steps.

        Before its first use it is warmed up until it beats chance on them; raises `LearnerStopped`
        if it does not within its warm-up.
        """
        agent = path_logprobs(policy, self._trees(lesson))
        self._trained(policy, lesson, agent, seed=seed, log=log)

    def _trained(
        self, policy: Policy, lesson: Lesson, agent: Sequence[Tensor], *, seed: int, log: Log
    ) -> list[Tensor]:
        """As `measure`; returns the logits of the paths of `lesson.compared`.

        `agent` holds log pi of the paths of each tree.
        """
        config, practised = self.config.discriminator, lesson.compared
        agent_there = path_logprobs(policy, practised)
        logits: list[Tensor] = []

        def measured() -> HeldOut:
            logits[:] = expert_logits(self.discriminator, practised, agent_there)
            return held_out(logits, practised)

        train_discriminator(
            self.discriminator,
            self._trees(lesson),
            agent,
            config,
            epochs=config.epochs if self.is_warm else config.warmup_epochs,
            seed=seed,
            log=lambda m: log("discriminator", m),
            enough=lambda: not self.is_warm and measured().beats_chance,
        )
        found = measured() if self.is_warm else held_out(logits, practised)
        if not self.is_warm and not found.beats_chance:
            raise LearnerStopped(
                f"after {config.warmup_epochs} epochs the discriminator is still at chance on "
                f"held-out steps (accuracy {found.accuracy:.3f}): its reward is not used"
            )
        self.is_warm = True
        log("start", {"discriminator_accuracy": found.accuracy})
        return logits

    def judge(self, policy: Policy, practised: Sequence[StepTree]) -> HeldOut:
        """Evaluates the policy's practised steps with the current discriminator."""
        return held_out(self._logits(policy, practised), practised)

    def _trees(self, lesson: Lesson) -> Sequence[StepTree]:
        return lesson.rollout_trees if self.config.states == "rollout" else lesson.trees

    def _rewards(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """For each tree the step rewards of its paths."""
        return [step_rewards(f, self.config.discriminator.reward) for f in logits]

    def _logits(self, policy: Policy, practised: Sequence[StepTree]) -> list[Tensor]:
        return expert_logits(self.discriminator, practised, path_logprobs(policy, practised))

    def save(self, folder: Path) -> None:
        """The discriminator as a model folder, the value head as safetensors."""
        self.discriminator.save(folder / DISCRIMINATOR)
        self.value_head.save(folder)

    def load(self, folder: Path) -> None:
        """A saved learner has been warmed up."""
        self.discriminator.restore(folder / DISCRIMINATOR)
        self.value_head.load(folder)
        self.is_warm = True
