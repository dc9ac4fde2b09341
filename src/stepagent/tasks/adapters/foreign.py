"""Tasks whose environments somebody else made: what their adapters have in common.

Such an environment knows neither named items nor a score from 0 to 100. The user says what `reset`
is given for each item (`Items`) and how rewards become a score (`Scoring`); an adapter says how the
environment is talked to.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from stepagent.console.printable import printable
from stepagent.tasks.adapters.replies import Unusable, flag, names, number
from stepagent.tasks.base import NOTHING, EnvironmentLost, ExpertFailed, Split
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.types import Trajectory

Items = Mapping[Split, Mapping[str, Mapping[str, Any]]]
"""What `reset` is given for each item, by split: `{"train": {"easy": {"seed": 3}}}`."""

Expert = Callable[[str], Callable[[str], str | None]]
"""For an item, what chooses an action for each observation, and None at the end."""

SPLITS: tuple[Split, ...] = get_args(Split)


LONGEST = 10_000
"""Steps after which an episode is cut off where no step limit is given: some never end."""

logger = logging.getLogger(__name__)


class EnvironmentFailed(EnvironmentLost):
    """An environment raised an error of its own, which is the cause; players must not see it."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How an episode's score is read: a value, and which value is worth 100."""

    of: Literal["info", "sum", "last"]
    """Info of the last step; sum of the rewards so far; reward of the last step."""
    key: str = "score"
    """Where the value is in the info."""
    worst: float = 0.0
    """The value that is worth 0; lower ones are too."""
    best: float = 1.0
    """The value that is worth 100; higher ones are too."""
    success: str | None = None
    """Where the info says whether the task is solved; None: it is if the value is the best."""

    def __post_init__(self) -> None:
        """Raises ValueError if the best value is not above the worst."""
        if not self.worst < self.best:
            raise ValueError(f"best ({self.best:g}) must be above worst ({self.worst:g})")

    def __str__(self) -> str:
        """The rule in words, for reports."""
        of = {"info": f"info {self.key!r}", "sum": "sum of rewards", "last": "last reward"}[self.of]
        return f"{of}, from {self.worst:g} (0) to {self.best:g} (100), best of the episode so far"

    def value(self, total: float, reward: float, info: Mapping[str, Any]) -> float:
        """What is looked at; raises `Unusable` if the info has no such number."""
        if self.of != "info":
            return total if self.of == "sum" else reward
        if self.key not in info:
            raise Unusable(f"no {self.key!r} in the info, which has: {names(info)}")
        return number(info[self.key], f"{self.key!r} in the info")

    def is_success(self, score: float, info: Mapping[str, Any]) -> bool:
        """Whether the task is solved; raises `Unusable` if the info says neither yes nor no."""
        if self.success is None:
            return score == 100
        return flag(info.get(self.success), f"{self.success!r} in the info")

    def score(self, total: float, reward: float, info: Mapping[str, Any]) -> float:
        """The value on the scale of 0 to 100; raises `Unusable` if the info has none."""
        value = self.value(total, reward, info)
        share = (value - self.worst) / (self.best - self.worst)
        # Ten rewards of 0.1 add up to a little less than 1, and are the best all the same. The
        # share is compared, not the value: that would be coarse on a scale far from 0.
        if share >= 1 or math.isclose(share, 1):
            return 100.0
        return 100 * max(share, 0.0)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a foreign environment says to an action, already checked."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class ForeignEnv(EpisodeEnv, ABC):
    """An environment around a foreign one; an adapter writes `start`, `play` and `end`."""

    def __init__(self, task: "ForeignTask", step_limit: int | None) -> None:
        """An environment of the task; it reaches for the foreign one at the first reset."""
        super().__init__(task, LONGEST if step_limit is None else step_limit)
        self._foreign_task = task
        self._total = self._best = 0.0

    @abstractmethod
    def start(self, item: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Starts the item with the arguments of its `reset`; instruction and first observation."""

    @abstractmethod
    def play(self, action: str) -> Answer:
        """Does the action."""

    def unscored(self, reason: str) -> Exception:
        """What to raise for an answer without the score, where a repeated episode has none either.

        An adapter of a server ends its session here and gives the error for what a server refuses.
        """
        return Unusable(f"{self._foreign_task.name}: {reason}")

    @abstractmethod
    def end(self) -> None:
        """Lets go of the foreign environment, if there is one; the next `start` finds another."""

    def close(self) -> None:
        """Lets go of the foreign environment; the next reset finds another."""
        self._running = False
        self._foreign_task.open_envs.discard(self)
        self.end()

    def begin(self, item: str) -> tuple[str, str]:
        """Starts the item; raises ValueError if there is no such item."""
        arguments = self._foreign_task.arguments(item)
        self._total = self._best = 0.0
        self._foreign_task.open_envs.add(self)
        instruction, observation = self.start(item, arguments)
        return instruction if instruction.strip() else NOTHING, observation

    def act(self, action: str) -> Outcome:
        """Does the action and keeps the best score."""
        # Lone surrogates cannot be sent as UTF-8.
        answer = self.play(action.encode("utf-8", "replace").decode())
        scoring = self._foreign_task.scoring
        self._total += answer.reward
        try:
            value = scoring.value(self._total, answer.reward, answer.info)
            score = scoring.score(self._total, answer.reward, answer.info)
            success = scoring.is_success(score, answer.info)
        except Unusable as error:
            raise self.unscored(f"{error}; see Scoring") from None
        if score == 100 and value > scoring.best and not math.isclose(value, scoring.best):
            self._foreign_task.warn_of_scale(value)
        self._best = max(self._best, score)
        return Outcome(
            observation=answer.observation,
            score=self._best,
            reward=answer.reward,
            terminated=answer.terminated,
            truncated=answer.truncated,
            success=success,
        )


class ForeignTask(ABC):
    """A task of foreign environments; metrics beyond score and success are not known of it."""

    def __init__(
        self,
        name: str,
        items: Items,
        *,
        scoring: Scoring,
        step_limit: int | None,
        group: Callable[[str], str] | None = None,
        expert: Expert | None = None,
    ) -> None:
        """Raises ValueError for an unknown split and for an item that is in two.

        `group` gives the kind of an item; without it all are of one kind, the task's name.
        """
        if step_limit is not None and step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, not {step_limit}")
        self.name = name
        self.scoring = scoring
        self.step_limit = step_limit
        self._given = checked_items(items)
        self._group = group
        self._expert = expert
        self._is_warned = False
        self.open_envs: set[ForeignEnv] = set()
        """Those that were reset and not closed; one that is dropped is still closed at the end."""

    @abstractmethod
    def build_env(self, step_limit: int | None) -> ForeignEnv:
        """A fresh environment."""

    def known_items(self) -> Items:
        """All items; an adapter may ask its server for them."""
        return self._given

    def arguments(self, item: str) -> Mapping[str, Any]:
        """What `reset` is given for the item; raises ValueError if there is no such item."""
        for arguments in self.known_items().values():
            if item in arguments:
                return arguments[item]
        raise ValueError(f"{self.name} has no item {item!r}")

    def items(self, split: Split) -> Sequence[str]:
        """Ids of the split, in the order in which they were given."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
        return list(self.known_items().get(split, {}))

    def group(self, item: str) -> str:
        """The kind of the item."""
        self.arguments(item)
        return self._group(item) if self._group else self.name

    def make_env(self) -> ForeignEnv:
        """A fresh environment with this task's step limit."""
        return self.build_env(self.step_limit)

    def expert(self, item: str) -> Trajectory:
        """What the given expert does, without the task's step limit, but at most `LONGEST` steps.

        Raises `ExpertFailed` if that does not solve the item, or if the task was given no expert.
        """
        if self._expert is None:
            raise ExpertFailed(f"{item}: {self.name} was given no expert")
        return follow(self, self.build_env(None), item, self._expert(item), {})

    def warn_of_scale(self, value: float) -> None:
        """Says once that a value is better than what was said to be the best."""
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "%s: a value of %g is beyond the best, %g, and counts as 100; see Scoring",
                printable(self.name), value, self.scoring.best,
            )  # fmt: skip

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """None."""
        return {}

    def facts(self) -> dict[str, Any]:
        """The protocol for reports: items, step limit, what score and success mean."""
        named = self.scoring.success
        return {
            "task": self.name,
            "items": {split: len(self.items(split)) for split in SPLITS},
            "step_limit": self.step_limit or LONGEST,
            "score": str(self.scoring),
            "success": f"info {named!r}" if named else "score 100",
            "expert": "given by the user" if self._expert else None,
        }

    def close(self) -> None:
        """Closes every environment of the task; they can be reset again."""
        for env in self.open_envs.copy():
            env.close()


def checked_items(items: Items) -> Items:
    """The items; raises ValueError for an unknown split and for an item that is in two."""
    seen: dict[str, str] = {}
    for split, arguments in items.items():
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
        for item in arguments:
            if item in seen:
                raise ValueError(f"item {item!r} is in two splits: {seen[item]} and {split}")
            seen[item] = split
    return items
