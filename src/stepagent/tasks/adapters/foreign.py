"""What all adapters of foreign environments share: items, scoring, step limit, expert.

Such an environment has neither named items nor a score from 0 to 100. The user says which arguments
`reset` gets for each item (`Items`) and how rewards become a score (`Scoring`); an adapter
implements the protocol of the environment.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from stepagent.console.printable import printable
from stepagent.tasks.adapters.raised import raised
from stepagent.tasks.adapters.replies import Unusable, quoted
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.base import (
    NOTHING,
    EnvironmentFailed,
    EnvironmentLost,
    ExpertFailed,
    Split,
)
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.types import Trajectory

Items = Mapping[Split, Mapping[str, Mapping[str, Any]]]
"""The arguments of `reset` for each item, by split: `{"train": {"easy": {"seed": 3}}}`."""

Expert = Callable[[str], Callable[[str], str | None]]
"""Given an item, returns a function from an observation to the next action, or None to stop."""

SPLITS: tuple[Split, ...] = get_args(Split)

LONGEST = 10_000
"""The step limit where none is given, because some environments never end."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The validated result of a step."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class ForeignEnv(EpisodeEnv, ABC):
    """Wraps a foreign environment; an adapter implements `start`, `play` and `end`."""

    def __init__(self, task: "ForeignTask", step_limit: int | None) -> None:
        """Connects to the foreign environment at the first reset, not here."""
        super().__init__(task, LONGEST if step_limit is None else step_limit)
        self._foreign_task = task
        self._total = self._best = 0.0
        self._item = ""

    @abstractmethod
    def start(self, item: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Resets to the item; returns the instruction and the first observation."""

    @abstractmethod
    def play(self, action: str) -> Answer:
        """Plays the action."""

    def unscored(self, reason: str) -> Exception:
        """The error to raise when a step has no usable score, which repeating would not change.

        The adapter of a server ends its session here and returns a `ServerError`.
        """
        return EnvironmentFailed(f"{self._item}: {reason}")

    @abstractmethod
    def end(self) -> None:
        """Releases the foreign environment, if there is one; the next `start` makes another."""

    def close(self) -> None:
        """Releases the foreign environment; the next reset makes another."""
        self._running = False
        self._foreign_task.open_envs.discard(self)
        self.end()

    def begin(self, item: str) -> tuple[str, str]:
        """Starts the item; raises ValueError if there is no such item."""
        arguments = self._foreign_task.arguments(item)
        self._total = self._best = 0.0
        self._item = item
        self._foreign_task.open_envs.add(self)
        instruction, observation = self.start(item, arguments)
        return instruction if instruction.strip() else NOTHING, observation

    def act(self, action: str) -> Outcome:
        """Plays the action; the score is the best of the episode so far."""
        # Lone surrogates cannot be sent as UTF-8.
        answer = self.play(action.encode("utf-8", "replace").decode())
        scoring = self._foreign_task.scoring
        self._total += answer.reward
        try:
            value = scoring.value(self._total, answer.reward, answer.info)
            score = scoring.score(self._total, answer.reward, answer.info)
            success = scoring.is_success(score, answer.info)
        except Unusable as error:
            raise self.unscored(str(error)) from None
        if value < scoring.worst and not math.isclose(value, scoring.worst):
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
    """A task of foreign environments; it has no metrics beyond score and success."""

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
        """Raises ValueError for an unknown split, and for an item in two splits.

        `group` returns the group of an item; without it all are in one, named after the task.
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
        """Environments that were reset and not closed; `close` closes them."""

    @abstractmethod
    def build_env(self, step_limit: int | None) -> ForeignEnv:
        """A fresh environment."""

    def known_items(self) -> Items:
        """All items; an adapter may request them from its server."""
        return self._given

    def arguments(self, item: str) -> Mapping[str, Any]:
        """The arguments of `reset` for the item; raises ValueError if there is no such item."""
        for arguments in self.known_items().values():
            if item in arguments:
                return arguments[item]
        raise ValueError(f"{self.name} has no item {item!r}")

    def items(self, split: Split) -> Sequence[str]:
        """Ids of the split, in the order given."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
        return list(self.known_items().get(split, {}))

    def group(self, item: str) -> str:
        """The group of the item."""
        self.arguments(item)
        return self._group(item) if self._group else self.name

    def make_env(self) -> ForeignEnv:
        """A fresh environment with this task's step limit."""
        return self.build_env(self.step_limit)

    def expert(self, item: str) -> Trajectory:
        """Plays the expert, without the task's step limit but at most `LONGEST` steps.

        Raises `ExpertFailed` if it does not solve the item or the task has no expert, and
        `EnvironmentFailed` if the expert's own code raises.
        """
        if self._expert is None:
            raise ExpertFailed(f"{item}: {self.name} was given no expert")
        choose = played_by(self._expert, item)
        return follow(self, self.build_env(None), item, choose, {})

    def warn_of_scale(self, value: float) -> None:
        """Warns once of a value below the worst, such as a sum that begins with penalties.

        It is no error, because score 0 is never better than what was reached.
        """
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "%s: a value of %g is below the worst, %g, and counts as score 0; if it should "
                "not, set worst to the lowest value (--worst)",
                printable(self.name), value, self.scoring.worst,
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
            "success": f"info {named!r}" if named else "info 'success' if there, else score 100",
            "expert": "given by the user" if self._expert else None,
        }

    def close(self) -> None:
        """Closes every environment of the task; they can be reset again."""
        for env in self.open_envs.copy():
            env.close()


def played_by(expert: Expert, item: str) -> Callable[[str], str | None]:
    """The expert on the item; what its code raises becomes `EnvironmentFailed`, with the place."""
    choose: Callable[[str], str | None] | None = None

    def checked(observation: str) -> str | None:
        nonlocal choose
        try:
            choose = choose or expert(item)
            action = choose(observation)
        except (ExpertFailed, EnvironmentLost):
            raise
        except (Exception, SystemExit) as error:
            raise EnvironmentFailed(f"{item}: the expert raised {raised(error)}") from error
        if action is not None and (not isinstance(action, str) or not action.strip()):
            raise EnvironmentFailed(
                f"{item}: the expert's action is {quoted(action)}; expected text, or None to stop"
            )
        return action

    return checked


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
