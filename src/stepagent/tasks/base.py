"""What a task is: named items in three splits, a text environment for each, and an expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import gymnasium as gym

from stepagent.bounds import SECONDS, check_bounds
from stepagent.console.printable import printable
from stepagent.types import Trajectory

Split = Literal["train", "dev", "test"]

TextEnv = gym.Env[str, str]
"""An environment whose observations and actions are plain text.

`reset(seed=..., options={"item": ID})` returns the first observation and an info with
`instruction`; `step` returns an info with `score` (0 to 100, the best so far), `success` (bool) and
`details` (JSON that the benchmark's own metrics need, such as `{"em": 1, "f1": 1}`).
"""

MAX_TRIES = 3
"""How often an episode is begun before it counts as lost."""

NOTHING = "(nothing)"
"""Stands for an empty action or observation: neither records nor chat servers take empty text."""


class _Line(RuntimeError):
    """An error whose message is one printable line, whatever text from outside is in it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, limit=4096))


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """How long an engine is waited for before it counts as lost. No part of the protocol."""

    timeout_seconds: float = 120.0
    """Longest wait for one answer; a loaded machine needs more."""
    start_timeout_seconds: float = 120.0
    """Longest wait for its start."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for times in which nothing can be done, or nobody would wait."""
        check_bounds(self, {"timeout_seconds": SECONDS, "start_timeout_seconds": SECONDS})


class EnvironmentLost(_Line):
    """The engine died or hangs: the episode has no score and must be repeated."""


class EnvironmentFailed(EnvironmentLost):
    """The environment's own code raised, or it answered with something that cannot be used.

    A repeated episode would fail again, so it is not repeated: the episodes of other items are
    played to their end, then this is raised (`play_all`).
    """


class EngineMissing(_Line):
    """The engine cannot be started on this machine, however often it is tried."""


class TaskDataError(_Line):
    """Data of a task is missing or damaged: which file and record, and what was expected."""


class Task(Protocol):
    """A benchmark: which items it has, how to act in them, and what an expert does."""

    name: str

    def items(self, split: Split) -> Sequence[str]:
        """Ids of all items of the split, in a fixed order."""
        ...

    def group(self, item: str) -> str:
        """The kind of task an item belongs to, for panels and per-group results."""
        ...

    def make_env(self) -> TextEnv:
        """A fresh environment for one thread; any item can be chosen at `reset`."""
        ...

    def expert(self, item: str) -> Trajectory:
        """What the expert does on the item; raises `ExpertFailed` if that does not solve it."""
        ...

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """The benchmark's own metrics by the names of its papers, beyond score and success.

        Episodes hold the last `details` of their environment in `metadata["details"]`.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """The protocol for reports: engine version, step limits, simplifications."""
        ...

    def close(self) -> None:
        """Ends every engine that the task started."""
        ...


class ExpertFailed(RuntimeError):
    """The expert's actions do not solve the item: it must not be used as a demonstration."""
