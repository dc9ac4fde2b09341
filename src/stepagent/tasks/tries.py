"""Retries after a lost environment, and what is reported if they all fail.

Environments may share an engine, so an item that kills it ends the other episodes as well. Items
whose retries failed in parallel are therefore tried again at the end, one at a time.

An environment whose own code fails (`EnvironmentFailed`) is an error instead: repeating the episode
would fail again, and leaving it out would bias the results, since it may be the agent's worst
actions that the environment cannot handle. The other episodes are finished before it is raised.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from stepagent.console.printable import printable
from stepagent.processes.children import ENDING
from stepagent.tasks.base import EnvironmentFailed, EnvironmentLost

logger = logging.getLogger(__name__)

MAX_TRIES = 3
"""Attempts at an episode before its item counts as lost."""

T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """An item without an episode, and why."""

    item: str
    reason: str


@dataclass(frozen=True)
class Lost(Missing):
    """An item whose environment was lost in every attempt."""

    def __str__(self) -> str:
        """One printable line."""
        reason = " ".join(self.reason.removeprefix(f"{self.item}: ").split())
        return f"{printable(self.item)}: {printable(reason, limit=300)}"


@dataclass(frozen=True)
class Failed(Lost):
    """An item whose environment's own code failed; the reason names the place."""


class Tries:
    """Counts how often the environment of one item was lost."""

    def __init__(self, item: str) -> None:
        """Starts with `MAX_TRIES` attempts."""
        self.item = item
        self._left = MAX_TRIES

    def play(self, first: Callable[[], T], again: Callable[[], T] | None = None) -> T | Lost:
        """Returns what `first` returns; if the environment is lost, calls `again` instead.

        `again` defaults to `first`. Losses are counted over all calls; returns `Lost` after
        `MAX_TRIES` of them, and `Failed` at once if the environment's own code fails. Raises
        `EnvironmentLost` only while the process is being stopped.
        """
        move = first
        while True:
            try:
                return move()
            except EnvironmentLost as error:
                if ENDING.is_set():
                    raise
                if isinstance(error, EnvironmentFailed):
                    return Failed(self.item, str(error))
                self._left -= 1
                if not self._left:
                    return Lost(self.item, str(error))
            logger.warning("%s: environment lost; repeating the episode", printable(self.item))
            move = again or first


def retried(item: str, play: Callable[[], T]) -> T | Lost:
    """Returns what `play` returns; calls it again if the environment is lost."""
    return Tries(item).play(play)


Play = Callable[[Sequence[str], int], Generator[T | Lost, None, None]]
"""Plays items, a given number in parallel, and yields their outcomes as they finish."""


def play_all(
    play: Play[T], items: Sequence[str], num_parallel: int
) -> Generator[T | Lost, None, None]:
    """Yields the outcome of every item; plays lost ones again at the end, one at a time.

    Raises `EnvironmentFailed` after the last outcome if the code of an environment failed.
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
    _raise_if_failed(failed)


def _raise_if_failed(failed: Sequence[Failed]) -> None:
    """Raises `EnvironmentFailed` for the first of them, if any, and counts the others."""
    if failed:
        more = len(failed) - 1
        others = f" (and {more} other item{'s' * (more > 1)} failed)" if more else ""
        raise EnvironmentFailed(f"{failed[0].reason}{others}")


def in_threads(
    play: Callable[[str], T], items: Sequence[str], num_parallel: int
) -> Generator[T, None, None]:
    """Yields what `play` returns for each item, as they finish; starts no more once closed."""
    threads = ThreadPoolExecutor(num_parallel)
    try:
        for finished in as_completed([threads.submit(play, item) for item in items]):
            yield finished.result()
    finally:
        threads.shutdown(cancel_futures=True)


def all_lost(lost: Sequence[Lost], count: int) -> EnvironmentLost:
    """The error to raise when every environment was lost."""
    return EnvironmentLost(f"all {count} environments were lost; the first: {lost[0]}")
