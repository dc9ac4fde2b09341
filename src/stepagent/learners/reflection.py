"""Reflection: learn from the difference between the expert's action and the agent's.

    for each round:
        practised = inspect the demonstrations with the policy
        learn     = step-wise DPO (implicit), or discriminator and then PPO (inverse)

A learner improves a policy in place from practised steps, and says what reward it gave them.
`MoreSFT` is the control: plain behavioural cloning for as many updates as its settings say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from stepagent.algorithms.discriminator import (
    DiscriminatorAtChance,
    DiscriminatorConfig,
    HeldOut,
    expert_logits,
    held_out,
    step_rewards,
    train_discriminator,
)
from stepagent.algorithms.dpo import DPOConfig, dpo, implicit_rewards
from stepagent.algorithms.ppo import PPOConfig, ppo
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.algorithms.value_head import ValueHead
from stepagent.bounds import COUNT, check_bounds
from stepagent.inspection import (
    StepTree,
    path_logprobs,
)
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.practice import Lesson


@dataclass(frozen=True, kw_only=True)
class InverseConfig:
    """Discriminator, then PPO on its step rewards."""

    states: Literal["practice", "rollout"] = "practice"
    """Where the agent acts: in the expert's states, or in an environment, in states of its own."""
    episodes: int = 1
    """Of each item that it plays in a round, if it acts in an environment."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Expert or agent?"""
    ppo: PPOConfig = PPOConfig()
    """Policy updates on the discriminator's step rewards."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers that cannot be."""
        check_bounds(self, {"episodes": COUNT})


Log = Callable[[str, Metrics], None]
"""Called with the phase ("train", "discriminator", "ppo", "dev") and its metrics."""


class Learner(Protocol):
    """One way to learn from practised steps."""

    practises: bool
    """Whether a lesson has to be practised before it is learnt."""
    explores: int
    """How many episodes of an item the policy plays before, if it plays; reflection needs none."""
    measures: bool
    """Whether `measure` finds anything."""

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Improves the policy in place; step rewards of the held-out trees' paths, if any."""
        ...

    def measure(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> HeldOut | None:
        """Gets ready to measure the policy that practised and does so, if the learner can."""
        ...

    def judge(self, policy: Policy, practised: Sequence[StepTree]) -> HeldOut | None:
        """How far a policy is from the expert in what it practised, if the learner can tell."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what the learner carries from round to round."""
        ...

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        ...


class Stateless:
    """A learner that carries nothing from round to round and cannot measure the agent."""

    practises = True
    explores = 0
    measures = False

    def measure(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> HeldOut | None:
        """Nothing."""
        return None

    def judge(self, policy: Policy, practised: Sequence[StepTree]) -> HeldOut | None:
        """Nothing."""
        return None

    def save(self, folder: Path) -> None:
        """Nothing to write."""

    def load(self, folder: Path) -> None:
        """Nothing to read."""


class MoreSFT(Stateless):
    """The control: more behavioural cloning of the same demonstrations, no reflection.

    With `practises` it is DAgger (Ross et al. 2011, arXiv 1011.0686): behavioural cloning in the
    states of detours, if there are any, so inspection without reflection.
    """

    def __init__(self, config: SFTConfig, *, practises: bool = False) -> None:
        """`config.epochs` passes in each round."""
        self.config = config
        self.practises = practises

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Clones the expert's actions."""
        sft(policy, lesson.demonstrations, self.config, seed=seed, log=lambda m: log("train", m))
        return None


class Implicit(Stateless):
    """Implicit reflection: step-wise DPO against the round's starting policy."""

    def __init__(self, config: DPOConfig) -> None:
        """One `DPOConfig` for every round."""
        self.config = config

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Prefers the expert's actions; returns the implicit rewards of the held-out paths."""
        held_out = lesson.held_out_trees
        reference = path_logprobs(policy, held_out)
        dpo(policy, lesson.trees, self.config, seed=seed, log=lambda m: log("train", m))
        return implicit_rewards(path_logprobs(policy, held_out), reference, self.config.beta)


class Inverse:
    """Inverse reflection: a discriminator's output rewards PPO."""

    practises = True
    measures = True

    def __init__(self, config: InverseConfig, policy: Policy) -> None:
        """The discriminator starts as a copy of the policy, the value head at zero."""
        self.config = config
        self.explores = config.episodes if config.states == "rollout" else 0
        self.discriminator = policy.copy("discriminator")
        self.value_head = ValueHead(policy.layers)
        self.is_warm = False

    def measure(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> HeldOut:
        """Trains the discriminator on what the policy practised; measures on the held-out part.

        Before its first use it is warmed up until it beats chance there; raises
        `DiscriminatorAtChance` if it does not within its warm-up.
        """
        config, practised = self.config.discriminator, lesson.compared_trees
        trees = self._trees(lesson)
        held_out_agent = path_logprobs(policy, practised)
        found: list[HeldOut] = []

        def beats_chance() -> bool:
            logits = expert_logits(self.discriminator, practised, held_out_agent)
            found.append(held_out(logits, practised))
            return found[-1].beats_chance and not self.is_warm

        train_discriminator(
            self.discriminator,
            trees,
            path_logprobs(policy, trees),
            config,
            epochs=config.epochs if self.is_warm else config.warmup_epochs,
            seed=seed,
            log=lambda m: log("discriminator", m),
            enough=beats_chance,
        )
        if not self.is_warm and not found[-1].beats_chance:
            raise DiscriminatorAtChance(
                f"after {config.warmup_epochs} epochs the discriminator is still at chance on "
                f"held-out steps (accuracy {found[-1].accuracy:.3f}): its reward is not used"
            )
        self.is_warm = True
        return found[-1]

    def judge(self, policy: Policy, practised: Sequence[StepTree]) -> HeldOut:
        """By the discriminator as it is now."""
        return held_out(self._logits(policy, practised), practised)

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """PPO on the step rewards; returns those of the held-out paths. `measure` comes first."""
        trees = self._trees(lesson)
        rewards, held_out_rewards = (
            self._rewards(policy, practised) for practised in (trees, lesson.held_out_trees)
        )
        facts = ppo(
            policy, self.value_head, trees, rewards, self.config.ppo, seed=seed,
            log=lambda m: log("ppo", m),
        )  # fmt: skip
        log("ppo", facts)
        return held_out_rewards

    def _trees(self, lesson: Lesson) -> list[StepTree]:
        return lesson.rollout_trees if self.config.states == "rollout" else lesson.trees

    def _rewards(self, policy: Policy, practised: Sequence[StepTree]) -> list[Tensor]:
        """For each tree the step rewards of its paths; the policy is the one that practised."""
        form = self.config.discriminator.reward
        return [step_rewards(f, form) for f in self._logits(policy, practised)]

    def _logits(self, policy: Policy, practised: Sequence[StepTree]) -> list[Tensor]:
        return expert_logits(self.discriminator, practised, path_logprobs(policy, practised))

    def save(self, folder: Path) -> None:
        """The discriminator as a model folder, the value head as safetensors."""
        self.discriminator.save(folder / "discriminator")
        self.value_head.save(folder)

    def load(self, folder: Path) -> None:
        """A saved learner has been warmed up."""
        self.discriminator.restore(folder / "discriminator")
        self.value_head.load(folder)
        self.is_warm = True
