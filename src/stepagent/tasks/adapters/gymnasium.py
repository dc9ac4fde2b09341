"""Text environments with the interface of Gymnasium, or of the older `gym`, as a task.

    task = GymTask(
        "guess",
        GuessEnv,
        {"train": {str(n): {"seed": n} for n in range(100)}, "test": {"final": {"seed": 100}}},
        instruction="Guess the number.",
        scoring=Scoring(of="sum", best=1.0),
        step_limit=20,
    )

What `reset` returns, `observation` or `(observation, info)`, and `step`, five values or the older
four, is told apart by its shape.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stepagent.console.printable import printable
from stepagent.tasks.adapters.foreign import (
    Answer,
    EnvironmentFailed,
    Expert,
    ForeignEnv,
    ForeignTask,
    Items,
    Scoring,
)
from stepagent.tasks.adapters.replies import Unusable, flag, names, number, quoted, text
from stepagent.tasks.base import EnvironmentLost

logger = logging.getLogger(__name__)

Instruction = str | Callable[[str, Mapping[str, Any]], str]
"""A text for all items, or what makes one of an episode's first observation and info."""


class GymTask(ForeignTask):
    """Environments that this process makes.

    `make_env` makes one; it is asked for once for each environment of the task, which then resets
    it for every item with the item's arguments. A `seed` goes to the environment's `seed` method
    if its `reset` takes none, as in `gym` before 0.26, or into its attribute `seed`.
    """

    def __init__(
        self,
        name: str,
        make_env: Callable[[], Any],
        items: Items,
        *,
        instruction: Instruction,
        scoring: Scoring,
        step_limit: int | None,
        group: Callable[[str], str] | None = None,
        expert: Expert | None = None,
    ) -> None:
        """Makes no environment yet; see `ForeignTask` for the rest."""
        super().__init__(
            name, items, scoring=scoring, step_limit=step_limit, group=group, expert=expert
        )
        self.make_inner = make_env
        self.instruction = instruction

    def build_env(self, step_limit: int | None) -> "GymTaskEnv":
        """A fresh environment."""
        return GymTaskEnv(self, step_limit)


class GymTaskEnv(ForeignEnv):
    """One environment of a `GymTask`.

    What it raises is `EnvironmentFailed`, after which the next episode gets another one; what
    cannot be used, no text or no score, is `Unusable`.
    """

    def __init__(self, task: GymTask, step_limit: int | None) -> None:
        """Makes the inner environment at the first reset."""
        super().__init__(task, step_limit)
        self._gym_task = task
        self._inner: Any = None
        self._item = ""

    def start(self, item: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Resets the inner environment with the item's arguments."""
        self._item = item
        if self._inner is None:
            self._inner = self._made()
        taken = self._accepted(arguments)
        with self._lost_if_it_fails("reset"):
            said = self._inner.reset(**taken)
        observation, info = said if isinstance(said, tuple) and len(said) == 2 else (said, None)
        observation, info = self._text(observation), self._info(info)
        instruction = self._gym_task.instruction
        if not isinstance(instruction, str):
            instruction = instruction(observation, info)
        return text(instruction, f"{item}: the instruction"), observation

    def play(self, action: str) -> Answer:
        """Steps the inner environment; a time limit of the older interface truncates."""
        with self._lost_if_it_fails("step"):
            said = self._inner.step(action)
        count = len(said) if isinstance(said, tuple | list) else 1
        if count not in (4, 5):
            raise self._unusable(f"step returned {count} values, not 4 (gym) or 5 (gymnasium)")
        observation, reward, terminated, *truncated, info = said
        info, observation = self._info(info), self._text(observation)
        try:
            reward, is_over = number(reward, "the reward"), flag(terminated, "terminated")
            if truncated:
                is_cut = flag(truncated[0], "truncated")
            else:
                is_cut = flag(info.get("TimeLimit.truncated"), "'TimeLimit.truncated' in the info")
                is_over = is_over and not is_cut
        except Unusable as error:
            raise self._unusable(str(error)) from None
        return Answer(
            observation=observation, reward=reward, terminated=is_over, truncated=is_cut, info=info
        )

    def unscored(self, reason: str) -> Exception:
        """An answer without the score, of which item."""
        return super().unscored(f"{self._item}: {reason}")

    def end(self) -> None:
        """Closes the inner environment, if it can be closed."""
        inner, self._inner = self._inner, None
        close = getattr(inner, "close", None)
        if close is not None:
            try:
                close()
            except Exception as error:
                logger.warning("%s: close failed: %s", printable(self._gym_task.name), _said(error))

    def _made(self) -> Any:
        try:
            return self._gym_task.make_inner()
        except Exception as error:
            raise self._unusable(f"the environment cannot be made: {_said(error)}") from error

    def _accepted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that `reset` takes, after the seed was set in another way if need be."""
        left = dict(arguments)
        try:
            takes = inspect.signature(self._inner.reset).parameters
        except (TypeError, ValueError):  # compiled code may have no signature
            return left
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
            return left
        if "seed" in left and "seed" not in takes and hasattr(self._inner, "seed"):
            with self._lost_if_it_fails("seed"):
                if callable(self._inner.seed):
                    self._inner.seed(left.pop("seed"))
                else:  # a number that the environment reads when it is reset
                    self._inner.seed = left.pop("seed")
        if unknown := left.keys() - takes.keys():
            raise self._unusable(
                f"reset takes no {names(unknown)}, which the item gives; it takes {names(takes)}"
            )
        return left

    @contextmanager
    def _lost_if_it_fails(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.end()
            if isinstance(error, EnvironmentLost):
                raise
            raise EnvironmentFailed(f"{self._item}: {what} failed: {_said(error)}") from error

    def _text(self, value: object) -> str:
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise self._unusable("the observation is bytes that are no UTF-8") from None
        if not isinstance(value, str):
            raise self._unusable(
                f"the observation is no text but {type(value).__name__}; wrap the environment so "
                "that it says in words what is seen"
            )
        return text(value, f"{self._item}: the observation")

    def _info(self, info: object) -> Mapping[str, Any]:
        if info is not None and not isinstance(info, Mapping):
            raise self._unusable(f"the info is no dict but {type(info).__name__}")
        return info or {}

    def _unusable(self, reason: str) -> Unusable:
        return Unusable(f"{self._item}: {reason}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {quoted(str(error))}"
