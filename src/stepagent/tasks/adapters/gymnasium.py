"""Text environments with the interface of Gymnasium, or of the older `gym`, as a task.

    task = GymTask("guess", GuessEnv, instruction="Guess the number.", step_limit=20)

Both return shapes of `reset`, `observation` and `(observation, info)`, and of `step`, five values
and the older four, are accepted.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gymnasium import spaces

from stepagent.console.printable import printable
from stepagent.tasks.adapters.foreign import Answer, Expert, ForeignEnv, ForeignTask, Items
from stepagent.tasks.adapters.patience import reported_if_slow
from stepagent.tasks.adapters.raised import cause, raised
from stepagent.tasks.adapters.replies import Unusable, flag, names, number, quoted, text
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.adapters.seeds import seed_items
from stepagent.tasks.base import EnvironmentFailed, EnvironmentLost

logger = logging.getLogger(__name__)

SUM = Scoring(of="sum")

SEED_HINT = (
    "; without a seed all items would be the same: write "
    "`def reset(self, *, seed=None, options=None)`"
)

Instruction = str | Callable[[str, Mapping[str, Any]], str]
"""One text for all items, or a function of an episode's first observation and info."""

STEP_LIMIT = 30
"""The default step limit of environments that this project did not make."""


class GymTask(ForeignTask):
    """A task of environments that live in this process.

    `make_env`, such as the class itself, is called once per environment of the task, which is then
    reset to many items with the item's arguments. A `seed` that `reset` does not take goes to the
    environment's method `seed`, as in `gym` before 0.26, or to its attribute `seed`.

    The defaults fit most text environments: items are seeds (`seed/17`, see `seed_items`), the
    score is the sum of rewards, of which 1 is the best, and the instruction is the environment's,
    `info["instruction"]` of `reset` or an attribute `instruction`.
    """

    def __init__(
        self,
        name: str,
        make_env: Callable[[], Any],
        items: Items | None = None,
        *,
        instruction: Instruction | None = None,
        scoring: Scoring = SUM,
        step_limit: int | None = STEP_LIMIT,
        group: Callable[[str], str] | None = None,
        expert: Expert | None = None,
    ) -> None:
        """Makes no environment yet.

        Args:
            name: The task's name in tables and trajectories.
            make_env: Makes one environment, such as its class.
            items: Arguments of `reset` by item, for each split; by default seeds, see `seed_items`.
            instruction: What the agent is told to do; by default the environment says it.
            scoring: How rewards become a score from 0 to 100.
            step_limit: Actions after which an episode is cut off; None for no limit.
            group: The group of an item; panels take equally many items of each. By default one.
            expert: For each item, a function from the observation to the expert's action.

        Raises:
            ValueError: The step limit is below 1, a split is unknown, or an item is in two splits.
        """
        super().__init__(
            name,
            seed_items() if items is None else items,
            scoring=scoring,
            step_limit=step_limit,
            group=group,
            expert=expert,
        )
        self.make_inner = make_env
        self.instruction = instruction

    def build_env(self, step_limit: int | None) -> "GymTaskEnv":
        """A fresh environment."""
        return GymTaskEnv(self, step_limit)


class GymTaskEnv(ForeignEnv):
    """One environment of a `GymTask`.

    Raises `EnvironmentFailed`, naming item, action and place, when the inner environment raises or
    returns something unusable. The same seed and actions would fail again, so the episode is not
    repeated, except after a ConnectionError or TimeoutError: those are `EnvironmentLost`. Either
    way the next episode gets a new inner environment.
    """

    def __init__(self, task: GymTask, step_limit: int | None) -> None:
        """Makes the inner environment at the first reset."""
        super().__init__(task, step_limit)
        self._gym_task = task
        self._inner: Any = None

    def start(self, item: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Resets the inner environment with the item's arguments."""
        if self._inner is None:
            self._inner = self._made()
        taken = self._accepted(arguments)
        given = ", ".join(f"{name}={quoted(value)}" for name, value in taken.items())
        with self._explained(f"reset({given})"):
            said = self._inner.reset(**taken)
        observation, info = said if isinstance(said, tuple) and len(said) == 2 else (said, None)
        observation, info = self._text(observation), self._info(info)
        return self._instruction(observation, info), observation

    def play(self, action: str) -> Answer:
        """Steps the inner environment; a time limit of the older interface truncates."""
        with self._explained(f"step('{printable(action)}')", self._action_hint()):
            said = self._inner.step(action)
        count = len(said) if isinstance(said, tuple | list) else 1
        if count not in (4, 5):
            raise self._failed(
                f"step returned {count} values; expected observation, reward, terminated, "
                "truncated, info"
            )
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
            raise self._failed(str(error)) from None
        return Answer(
            observation=observation, reward=reward, terminated=is_over, truncated=is_cut, info=info
        )

    def end(self) -> None:
        """Closes the inner environment, if it can be closed."""
        inner, self._inner = self._inner, None
        close = getattr(inner, "close", None)
        if close is not None:
            try:
                with reported_if_slow(f"{self._gym_task.name}: close()"):
                    close()
            except (Exception, SystemExit) as error:
                logger.warning(
                    "%s: close() raised %s", printable(self._gym_task.name), raised(error)
                )

    def _made(self) -> Any:
        try:
            return self._gym_task.make_inner()
        except (Exception, SystemExit) as error:
            reason = f"the environment cannot be made: {raised(error)}"
            raise self._failed(reason) from error

    def _accepted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that `reset` takes; a seed may have been set in another way before."""
        left = dict(arguments)
        try:
            takes = inspect.signature(self._inner.reset).parameters
        except (TypeError, ValueError):  # compiled code may have no signature
            return left
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
            return left
        if "seed" in left and "seed" not in takes and hasattr(self._inner, "seed"):
            with self._explained("setting the seed"):
                if callable(self._inner.seed):
                    self._inner.seed(left.pop("seed"))
                else:  # a number that the environment reads when it is reset
                    self._inner.seed = left.pop("seed")
        if unknown := left.keys() - takes.keys():
            hint = SEED_HINT if "seed" in unknown else ""
            raise self._failed(
                f"reset does not take {names(unknown)} of the item; it takes {names(takes)}{hint}"
            )
        return left

    def _instruction(self, observation: str, info: Mapping[str, Any]) -> str:
        """The instruction of the task if it has one, else the environment's own."""
        found: Any = self._gym_task.instruction
        if callable(found):
            with self._explained("the function of the instruction"):
                found = found(observation, info)
        elif found is None:
            inner = getattr(self._inner, "unwrapped", self._inner)  # wrappers hide attributes
            found = info.get("instruction", getattr(inner, "instruction", None))
            if found is None:
                raise self._failed(
                    "the environment has no instruction: return it from reset as "
                    "info['instruction'], make it an attribute `instruction` of the class, or give "
                    "it with --instruction"
                )
        return self._checked(found, "the instruction")

    def _action_hint(self) -> str:
        """For an environment that takes no text: what its actions are."""
        space = getattr(self._inner, "action_space", None)
        if isinstance(space, spaces.Space) and not isinstance(space, spaces.Text):
            return (
                f"; its actions are {quoted(str(space))[1:-1]}, not text: wrap the environment so "
                "that it reads the agent's words"
            )
        return "; step has to answer any text, if only by saying that nothing happens"

    @contextmanager
    def _explained(self, what: str, hint: str = "") -> Iterator[None]:
        """Turns exceptions of the inner environment into ours, and drops that environment."""
        try:
            with reported_if_slow(f"{self._item}: {what}"):
                yield
        except (Exception, SystemExit) as error:
            self.end()
            if isinstance(error, EnvironmentLost):
                raise
            if isinstance(error, ConnectionError | TimeoutError):
                raise EnvironmentLost(f"{self._item}: {what} raised {raised(error)}") from error
            raise self._failed(f"{what} raised {raised(error)}{hint}") from cause(error)

    def _text(self, value: object) -> str:
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise self._failed("the observation is bytes that are not UTF-8") from None
        if not isinstance(value, str):
            raise self._failed(
                f"the observation is not text but {type(value).__name__}; wrap the environment so "
                "that it says in words what the agent sees"
            )
        return self._checked(value, "the observation")

    def _checked(self, value: object, what: str) -> str:
        try:
            return text(value, what)
        except Unusable as error:
            raise self._failed(str(error)) from None

    def _info(self, info: object) -> Mapping[str, Any]:
        if info is not None and not isinstance(info, Mapping):
            raise self._failed(f"the info is not a dict but {type(info).__name__}")
        return info or {}

    def _failed(self, reason: str) -> EnvironmentFailed:
        return EnvironmentFailed(f"{self._item}: {reason}")
