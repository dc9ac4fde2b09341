"""Tasks that a user wrote: what breaks the contract of `Task` becomes one line with its place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import gymnasium as gym

from stepagent.console.printable import printable
from stepagent.tasks.adapters.foreign import LONGEST, SPLITS, ForeignTask
from stepagent.tasks.adapters.patience import reported_if_slow
from stepagent.tasks.adapters.raised import cause, raised
from stepagent.tasks.adapters.replies import Unusable, flag, number, quoted, text
from stepagent.tasks.base import (
    EngineMissing,
    EnvironmentFailed,
    EnvironmentLost,
    ExpertFailed,
    Split,
    Task,
    TaskDataError,
    TextEnv,
)
from stepagent.tasks.episode import MAX_ACTION_CHARS, MAX_OBSERVATION_CHARS, AnyText
from stepagent.types import Trajectory

T = TypeVar("T")

OUR_ERRORS = (EngineMissing, EnvironmentLost, ExpertFailed, TaskDataError, gym.error.ResetNeeded)
"""What a task may raise; all else is a fault of its code."""

METHODS = ("items", "group", "make_env", "expert", "metrics", "facts", "close")


def guarded(task: Task) -> Task:
    """The task itself if it is made of our classes, else one that checks what it returns.

    Raises `EnvironmentFailed` if it lacks a part of `Task`, or if its items cannot be used.
    """
    if isinstance(task, ForeignTask | GuardedTask) or _is_ours(task):
        return task
    return GuardedTask(task)


def _is_ours(task: Task) -> bool:
    return type(task).__module__.partition(".")[0] == "stepagent"


class GuardedTask:
    """A user's task: its exceptions and the values it returns become `EnvironmentFailed`."""

    def __init__(self, task: Task) -> None:
        """Raises `EnvironmentFailed` if a part of `Task` is missing, or its items are unusable."""
        kind = type(task).__name__
        if missing := [name for name in METHODS if not callable(getattr(task, name, None))]:
            raise EnvironmentFailed(f"{kind} is not a complete Task: it lacks {', '.join(missing)}")
        if not isinstance(getattr(task, "name", None), str) or not task.name.strip():
            raise EnvironmentFailed(f"{kind} is not a complete Task: it needs a text `name`")
        self.name = task.name
        self._task = task
        seen: dict[str, Split] = {}
        for split in SPLITS:
            for item in self.items(split):
                if not isinstance(item, str) or not item.strip():
                    raise EnvironmentFailed(f"{kind}: item {quoted(item)} of {split} is not text")
                if item in seen:
                    both = f"{seen[item]} and {split}" if seen[item] != split else f"{split} twice"
                    raise EnvironmentFailed(f"{kind}: item {quoted(item)} is in {both}")
                seen[item] = split

    def items(self, split: Split) -> Sequence[str]:
        """The task's items."""
        with explained(f"items('{split}')"):
            return list(self._task.items(split))

    def group(self, item: str) -> str:
        """The task's group of the item."""
        with explained(f"group({quoted(item)})"):
            return self._task.group(item)

    def make_env(self) -> TextEnv:
        """An environment of the task, with its answers checked."""
        with explained("make_env()"):
            return GuardedEnv(self._task.make_env())

    def expert(self, item: str) -> Trajectory:
        """The task's expert on the item."""
        with explained(f"expert({quoted(item)})"):
            found = self._task.expert(item)
        if not isinstance(found, Trajectory):
            raise EnvironmentFailed(
                f"{item}: expert returned {type(found).__name__}; expected a Trajectory, or "
                "ExpertFailed to be raised"
            )
        return found

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """The task's own metrics."""
        with explained("metrics(episodes)"):
            return self._task.metrics(episodes)

    def facts(self) -> dict[str, Any]:
        """The task's facts."""
        with explained("facts()"):
            return self._task.facts()

    def close(self) -> None:
        """Closes the task."""
        with explained("close()"):
            self._task.close()


class GuardedEnv(gym.Env[str, str]):
    """An environment of a user's task; an episode that never ends is cut off at `LONGEST` steps."""

    observation_space = AnyText(MAX_OBSERVATION_CHARS)
    action_space = AnyText(MAX_ACTION_CHARS)

    def __init__(self, env: TextEnv) -> None:
        """Not reset yet."""
        self._env = env
        self._item = ""
        self._count = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The first observation and an info with `instruction`."""
        self._item, self._count = str((options or {}).get("item", "")), 0
        with explained(f"reset(options={quoted(options)})", self._item):
            said = self._env.reset(seed=seed, options=options)
        if not isinstance(said, tuple) or len(said) != 2:
            raise self._failed("reset has to return an observation and an info")
        observation, info = said
        info = self._info(info)
        if "instruction" not in info:
            raise self._failed("the info of reset has no 'instruction'")
        info["instruction"] = self._checked(text, info["instruction"], "the instruction")
        return self._checked(text, observation, "the observation"), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The next observation; `score` and `success` of its info are checked."""
        with explained(f"step('{printable(action)}')", self._item):
            said: Any = self._env.step(action)
        if not isinstance(said, tuple) or len(said) != 5:
            raise self._failed(
                "step has to return observation, reward, terminated, truncated and info"
            )
        observation, reward, terminated, truncated, info = said
        info = self._info(info)
        if missing := {"score", "success"} - info.keys():
            raise self._failed(f"the info of step has no {quoted(min(missing))}")
        info["score"] = self._checked(number, info["score"], "the score")
        if not 0 <= info["score"] <= 100:
            raise self._failed(f"the score is {info['score']:g}; expected 0 to 100")
        info["success"] = self._checked(flag, info["success"], "'success' in the info")
        self._count += 1
        is_over = self._checked(flag, terminated, "terminated")
        is_cut = self._checked(flag, truncated, "truncated") or self._count >= LONGEST
        return (
            self._checked(text, observation, "the observation"),
            self._checked(number, reward, "the reward"),
            is_over,
            is_cut and not is_over,
            info,
        )

    def close(self) -> None:
        """Closes the user's environment."""
        with explained("close()", self._item):
            self._env.close()

    def _info(self, info: object) -> dict[str, Any]:
        if not isinstance(info, Mapping):
            raise self._failed(f"the info is not a dict but {type(info).__name__}")
        return dict(info)

    def _checked(self, check: Callable[[Any, str], T], value: object, what: str) -> T:
        try:
            return check(value, what)
        except Unusable as error:
            raise self._failed(str(error)) from None

    def _failed(self, reason: str) -> EnvironmentFailed:
        return EnvironmentFailed(f"{self._item}: {reason}")


@contextmanager
def explained(what: str, item: str = "") -> Iterator[None]:
    """Turns an exception of a user's code into `EnvironmentFailed`, with the place.

    A broken connection and a timeout may be temporary: they are `EnvironmentLost`.
    """
    try:
        with reported_if_slow(f"{item}: " * bool(item) + what):
            yield
    except OUR_ERRORS:
        raise
    except (Exception, SystemExit) as error:
        message = f"{item}: " * bool(item) + f"{what} raised {raised(error)}"
        is_temporary = isinstance(error, ConnectionError | TimeoutError)
        raise (EnvironmentLost if is_temporary else EnvironmentFailed)(message) from cause(error)
