"""Two methods on the same items: the paired difference of their scores and successes."""

from collections.abc import Iterable
from dataclasses import dataclass

from stepagent.statistics import PairedDifference, paired_difference
from stepagent.types import Trajectory


@dataclass(frozen=True)
class Paired:
    """Differences over the items that both have played; what one of them lacks is left out."""

    score: PairedDifference
    """Points, from -100 to 100."""
    success: PairedDifference
    """Percentage points."""


def compare(mine: Iterable[Trajectory], theirs: Iterable[Trajectory]) -> Paired:
    """Mine minus theirs, paired by item."""
    own = {episode.id: episode for episode in mine}
    pairs = [(own[other.id], other) for other in theirs if other.id in own]
    scores = [(x.score, y.score) for x, y in pairs if x.score is not None and y.score is not None]
    successes = [
        (100.0 * x.success, 100.0 * y.success)
        for x, y in pairs
        if x.success is not None and y.success is not None
    ]
    score, success = (
        paired_difference([x for x, _ in both], [y for _, y in both])
        for both in (scores, successes)
    )
    return Paired(score, success)
