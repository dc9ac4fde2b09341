"""Growth with the number of steps and with the length of the context, in time and in memory.

Step-wise DPO of the small model in float32, an update after the first, on walks of equal steps.
TRL has one row in a batch, so that no memory goes into padding, and is asked only while its next
update should take less than `LIMIT` seconds.
"""

from collections.abc import Iterator, Sequence
from statistics import median

from stepagent.types import Trajectory

from .material import Setup, open_policy, practised_tree, walk
from .measuring import Row, alone, exponent
from .training import Trained, Training, check_equal, ours, rows, trl

TITLE = "Growth of an update with steps and with context, small model, float32"
STEPS = (5, 10, 20, 40, 80)
WORDS_OF_A_STEP = 40
CONTEXTS = (1024, 2048, 4096, 8192, 16384)
STEPS_IN_A_CONTEXT = 8
LIMIT = 8.0


def answer(
    setup: Setup, steps: Sequence[int] = STEPS, contexts: Sequence[int] = CONTEXTS
) -> Iterator[Row]:
    """A row for each size, and after each series the fitted exponents, in tokens of the tree."""
    yield from _series(setup, "steps", {n: walk(n, WORDS_OF_A_STEP) for n in steps})
    sized = {n: walk(STEPS_IN_A_CONTEXT, n // STEPS_IN_A_CONTEXT) for n in contexts}
    yield from _series(setup, "context", sized)


def _series(setup: Setup, what: str, walks: dict[int, Trajectory]) -> Iterator[Row]:
    policy = open_policy(setup.small, "float32")
    tokens: list[int] = []
    mine: list[Trained] = []
    theirs: list[Trained] = []
    for size, trajectory in walks.items():
        training = Training(
            model=setup.small, adapter=None, trajectory=trajectory, loss="dpo",
            precision="float32", updates=2,
        )  # fmt: skip
        tokens.append(len(practised_tree(policy, trajectory).tree))
        mine.append(alone(ours, training))
        other = None
        # A series that has stopped stays stopped: time grows with the square of the size.
        if len(theirs) == len(tokens) - 1 and _next_seconds(theirs, list(walks)) < LIMIT:
            other = alone(trl, training, rows(training), 1)
            check_equal(training, mine[-1], other)
            theirs.append(other)
        yield _row(what, size, tokens[-1], mine[-1], other)
    fitted: Row = {"series": what, "size": "exponent", "tokens": ""}
    for name, side in (("", mine), ("TRL ", theirs)):
        sizes = tokens[: len(side)]
        fitted |= {
            f"{name}seconds": exponent(sizes, [median(t.seconds) for t in side]),
            f"{name}MB": exponent(sizes, [max(t.rise_mb, 1e-3) for t in side]),
        }
    yield fitted


def _next_seconds(theirs: Sequence[Trained], sizes: Sequence[int]) -> float:
    """What TRL's update at the next size should take."""
    if not theirs:
        return 0.0
    growth = sizes[len(theirs)] / sizes[len(theirs) - 1]
    return median(theirs[-1].seconds) * growth**2


def _row(what: str, size: int, tokens: int, mine: Trained, other: Trained | None) -> Row:
    row: Row = {"series": what, "size": size, "tokens": tokens}
    for name, side in (("", mine), ("TRL ", other)):
        row[f"{name}seconds"] = round(median(side.seconds), 3) if side else None
        row[f"{name}MB"] = round(side.rise_mb) if side else None
    return row
