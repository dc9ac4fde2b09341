"""Lost environments: the episode is tried again, and given up without harm to the others.

Environments may share an engine, so one that kills it takes the others' episodes along. What was
lost too often beside others is therefore tried once more when they are done, alone.

An environment whose own code fails (`EnvironmentFailed`) is another matter. Repeating the episode
would fail again, and leaving it out would make the results wrong: it may well be the agent's worst
actions that the environment cannot answer. The other episodes are finished, then it is an error.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from stepagent.console.printable import printable
from stepagent.processes.children import ENDING
from stepagent.tasks.base import MAX_TRIES, EnvironmentFailed, EnvironmentLost

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """An item of which there is no episode."""

    item: str
    reason: str


@dataclass(frozen=True)
class Lost(Missing):
    """An item whose environment was lost in every try."""

    def __str__(self) -> str:
        """One printable line."""
        reason = " ".join(self.reason.removeprefix(f"{self.item}: ").split())
        return f"{printable(self.item)}: {printable(reason, limit=300)}"


@dataclass(frozen=True)
class Failed(Lost):
    """An item whose environment fails by its own fault; the reason names the place."""


class Tries:
    """How often an item's environment was lost."""

    def __init__(self, item: str) -> None:
        """Not lost yet."""
        self.item = item
        self._left = MAX_TRIES

    def failed(self, error: EnvironmentLost) -> Lost | None:
        """Counts a loss; None if the episode should be repeated."""
        if ENDING.is_set():
            raise error
        if isinstance(error, EnvironmentFailed):
            return Failed(self.item, str(error))
        self._left -= 1
        if not self._left:
            return Lost(self.item, str(error))
        logger.warning("%s: environment lost; repeating the episode", printable(self.item))
        return None


def retried(item: str, play: Callable[[], T]) -> T | Lost:
    """What `play` returns, repeated from its beginning when the environment is lost."""
    tries = Tries(item)
    while True:
        try:
            return play()
        except EnvironmentLost as error:
            if lost := tries.failed(error):
                return lost


Play = Callable[[Sequence[str], int], Generator[T | Lost, None, None]]
"""Plays items, so many at a time, and yields what comes of each as it is finished."""


def play_all(
    play: Play[T], items: Sequence[str], num_parallel: int
) -> Generator[T | Lost, None, None]:
    """What comes of every item; those that were lost are played once more at the end, alone.

    Raises `EnvironmentFailed` after the last outcome if an environment failed by its own fault.
    """
    alone, failed = list[str](), list[Failed]()
    with closing(play(items, num_parallel)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                failed.append(outcome)
            elif isinstance(outcome, Lost) and num_parallel > 1:
                alone.append(outcome.item)
            else:
                yield outcome
    if alone:
        logger.warning("%d environments were lost; playing their items again, alone", len(alone))
        for outcome in play(alone, 1):
            if isinstance(outcome, Failed):
                failed.append(outcome)
            else:
                yield outcome
    raise_if_failed(failed)


def raise_if_failed(outcomes: Sequence[object]) -> None:
    """Raises `EnvironmentFailed` for the first outcome that is `Failed`, and counts the others."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if failed:
        others = f" (and {len(failed) - 1} other items failed)" if len(failed) > 1 else ""
        raise EnvironmentFailed(f"{failed[0].reason}{others}")


def all_lost(lost: Sequence[Lost], count: int) -> EnvironmentLost:
    """The error where nothing is left to go on with."""
    return EnvironmentLost(f"all {count} environments were lost; the first: {lost[0]}")
