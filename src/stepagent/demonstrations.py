"""Demonstrations: what an expert solved is collected, what it did not is counted."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stepagent.progress import track
from stepagent.tasks.base import EnvironmentLost, ExpertFailed, Task
from stepagent.types import Trajectory


@dataclass(frozen=True)
class Collection:
    """What the expert did, and on which items it failed."""

    trajectories: tuple[Trajectory, ...]
    """In the order of the items."""
    failed: tuple[str, ...]
    """One line for each item that the expert did not solve."""


def collect(task: Task, items: Iterable[str], *, num_parallel: int = 4) -> Collection:
    """The expert's trajectories on the items; a lost environment is tried once more."""

    def demonstrate(item: str) -> Trajectory | ExpertFailed:
        try:
            try:
                return task.expert(item)
            except EnvironmentLost:
                return task.expert(item)
        except ExpertFailed as error:
            return error

    wanted = list(items)
    with ThreadPoolExecutor(num_parallel) as threads:
        found = list(track(threads.map(demonstrate, wanted), "Collecting", total=len(wanted)))
    return Collection(
        trajectories=tuple(t for t in found if isinstance(t, Trajectory)),
        failed=tuple(str(t) for t in found if isinstance(t, ExpertFailed)),
    )


def solved(episodes: Sequence[Trajectory]) -> Collection:
    """The successful ones among episodes of a policy that is taken for an expert."""
    return Collection(
        trajectories=tuple(t for t in episodes if t.success),
        failed=tuple(
            f"{t.id}: score {t.score:g} after {len(t.steps)} steps, not solved"
            for t in episodes
            if not t.success
        ),
    )
