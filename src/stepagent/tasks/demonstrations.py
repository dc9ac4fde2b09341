"""Demonstrations: collects what a task's expert solves and counts what it does not."""

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from stepagent.console.progress import track
from stepagent.processes import ranks
from stepagent.tasks.base import ExpertFailed, Task
from stepagent.tasks.tries import Lost, Missing, all_lost, in_threads, play_all, retried
from stepagent.types import Trajectory


@dataclass(frozen=True)
class Unsolved(Missing):
    """An item that the expert did not solve; the reason contains its id."""


@dataclass(frozen=True)
class Collection:
    """The expert's trajectories, and the items on which it failed."""

    trajectories: tuple[Trajectory, ...]
    """In the order of the items."""
    failed: tuple[str, ...]
    """One line for each item that the expert did not solve."""
    lost: tuple[Lost, ...] = ()
    """Items whose environment was lost in every attempt."""


Demonstrated = Trajectory | Unsolved | Lost


def demonstrate(
    task: Task, items: Sequence[str], *, num_parallel: int
) -> Generator[Demonstrated, None, None]:
    """Yields the outcome of the expert's attempt at each item, as they finish."""
    return play_all(partial(_demonstrate, task), items, num_parallel)


def _demonstrate(
    task: Task, items: Sequence[str], num_parallel: int
) -> Generator[Demonstrated, None, None]:
    def attempt(item: str) -> Demonstrated:
        try:
            return retried(item, lambda: task.expert(item))
        except ExpertFailed as error:
            return Unsolved(item, str(error))

    # Experts wait for nothing but their environments, which compete for the cores.
    return in_threads(attempt, items, min(num_parallel, os.cpu_count() or 1))


def sorted_out(found: Sequence[Trajectory | Missing]) -> Collection:
    """Sorts outcomes by kind; raises `EnvironmentLost` if every environment was lost."""
    lost = tuple(f for f in found if isinstance(f, Lost))
    if lost and len(lost) == len(found):
        raise all_lost(lost, len(found))
    return Collection(
        trajectories=tuple(f for f in found if isinstance(f, Trajectory)),
        failed=tuple(f.reason for f in found if isinstance(f, Unsolved)),
        lost=lost,
    )


def collect(task: Task, items: Sequence[str], *, num_parallel: int = 4) -> Collection:
    """Lets the task's expert play each item once.

    Args:
        task: The task; it needs an expert.
        items: Ids of the items, such as `task.items("train")[:40]`.
        num_parallel: Episodes that run at the same time.

    Returns:
        The expert's trajectories in the order of the items; beside them the items that it did not
        solve, and those whose environment was lost.

    Raises:
        EnvironmentLost: The environments of all items were lost.

    Example:
        >>> import stepagent
        >>> items = task.items("train")[:3]
        >>> found = stepagent.collect(task, items)
        >>> [trajectory.id for trajectory in found.trajectories] == items
        True
        >>> found.failed, found.lost
        ((), ())
    """
    found = {}
    own = ranks.every_other(items)
    outcomes = demonstrate(task, own, num_parallel=num_parallel)
    for outcome in track(outcomes, "Collecting", total=len(own)):
        found[outcome.id if isinstance(outcome, Trajectory) else outcome.item] = outcome
    found = ranks.gathered(found)
    return sorted_out([found[item] for item in items])


def solved(episodes: Sequence[Trajectory], lost: Sequence[Lost] = ()) -> Collection:
    """The successful episodes of a policy that serves as the expert."""
    return Collection(
        trajectories=tuple(t for t in episodes if t.success),
        failed=tuple(
            f"{t.id}: score {t.score:g} after {len(t.steps)} steps, not solved"
            for t in episodes
            if not t.success
        ),
        lost=tuple(lost),
    )
