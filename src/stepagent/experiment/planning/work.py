"""The work of a run: which stages it has, and how many tokens go through each."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from stepagent.algorithms.sft import SFTConfig
from stepagent.bounds import AMOUNT, COUNT, check_bounds
from stepagent.experiment.config import TrainConfig
from stepagent.learners.implicit import ImplicitConfig
from stepagent.learners.inverse import InverseConfig
from stepagent.methods import METHODS, NOVICE

Kind = Literal["train", "read", "practice"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Demonstrations of equal length."""

    demonstrations: int = 1000
    """Trajectories to train on."""
    steps: int = 14
    """Steps of each."""
    tokens: int = 550
    """Tokens of each: what its last state shows, and the last action."""
    action_tokens: int = 8
    """Tokens of an action."""
    held_out: int = 50
    """Trajectories to measure on."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds`, in `tokens` too if the steps do not fit into them."""
        check_bounds(
            self,
            {
                "demonstrations": COUNT, "steps": COUNT, "action_tokens": COUNT, "held_out": AMOUNT,
                "tokens": COUNT,
            },
        )  # fmt: skip

    def tree(self, actions: int) -> int:
        """Tokens of a demonstration with so many of the agent's actions in each state."""
        return self.tokens + self.steps * actions * self.action_tokens

    def paths(self, actions: int) -> int:
        """Tokens of its expert's and its agent's actions, each of which is predicted."""
        return self.steps * (1 + actions) * self.action_tokens


@dataclass(frozen=True)
class Stage:
    """Work of one kind."""

    method: str
    name: str
    kind: Kind
    trees: int
    """Demonstrations that go through it; those of several passes count several times."""
    actions: int
    """The agent's actions in each state of them."""
    batch: int = 0
    """Demonstrations in an update; 0 if nothing is trained."""

    @property
    def updates(self) -> int:
        """Number of updates."""
        return ceil(self.trees / self.batch) if self.batch else 0

    def tokens(self, data: Data) -> int:
        """Tokens that are forwarded together; for practice those of the states."""
        return self.trees * (data.tokens if self.kind == "practice" else data.tree(self.actions))

    def sampled(self, data: Data) -> int:
        """Tokens that the agent samples."""
        if self.kind != "practice":
            return 0
        return self.trees * self.actions * data.steps * data.action_tokens


def stages(config: TrainConfig, data: Data) -> Iterator[Stage]:
    """All stages of a run, in their order, without episodes in an environment.

    Methods have none if `is_planned` says so.
    """
    many, few = data.demonstrations, data.held_out
    sft = config.sft
    yield Stage(NOVICE, "SFT", "train", many * sft.epochs, 0, sft.batch_size)
    actions = config.inspection.num_actions
    is_inspected = False
    for method in config.methods:
        if not is_planned(config, method):
            continue
        for number in range(config.rounds):
            name = METHODS[method].label
            # All methods practise as the novice does in round 1, which is done once.
            inspects = isinstance(config.learner_config(method), ImplicitConfig | InverseConfig)
            if inspects and not (number == 0 and is_inspected):
                yield Stage(method, "inspection", "practice", many + few, actions)
                is_inspected = True
            yield from _learning(config, method, name, many, few, actions, number)
            yield Stage(method, "agreement", "practice", few, 1)


def _learning(
    config: TrainConfig, method: str, name: str, many: int, few: int, actions: int, number: int
) -> Iterator[Stage]:
    plan = config.learner_config(method)
    if isinstance(plan, InverseConfig):
        judge, ppo = plan.discriminator, plan.ppo
        # A warm-up ends when the discriminator beats chance, at the latest after all its passes.
        passes = judge.epochs if number else judge.warmup_epochs
        yield Stage(method, "reading", "read", 2 * many + (2 + passes) * few, actions)
        yield Stage(method, "discriminator", "train", many * passes, actions, judge.batch_size)
        yield Stage(method, "PPO", "train", many * ppo.epochs, actions, ppo.batch_size)
        return
    if isinstance(plan, ImplicitConfig):
        yield Stage(method, "reading", "read", many + 2 * few, actions)
        yield Stage(method, "step-wise DPO", "train", many * plan.epochs, actions, plan.batch_size)
        return
    if isinstance(plan, SFTConfig):
        yield Stage(method, "SFT", "train", many * plan.epochs, 0, plan.batch_size)


def is_planned(config: TrainConfig, method: str) -> bool:
    """Whether a method's work is known before; others play episodes whose length is not."""
    return isinstance(config.learner_config(method), SFTConfig | ImplicitConfig | InverseConfig)
