"""Items that are seeds: `seed/17` is the episode that `reset(seed=17)` begins."""

import re

from stepagent.bounds import MAX_SEED, OutOfBounds
from stepagent.tasks.adapters.foreign import Items
from stepagent.tasks.base import Split

TRAIN, DEV, TEST = "0-999", "1000000-1000999", "2000000-2000999"
"""Seeds of the splits. Demonstrations usually have small seeds, so dev and test stay away from."""

MAX_ITEMS = 100_000
"""Longest range, since every item is listed."""


def split_ranges(train: str, dev: str, test: str) -> dict[Split, range]:
    """The numbers of each split, from ranges such as `0-999` (both ends included) or `7`.

    Raises `OutOfBounds` for what is not a range, and for a number in two splits.
    """
    texts: dict[Split, str] = {"train": train, "dev": dev, "test": test}
    ranges: dict[Split, range] = {}
    for split, text in texts.items():
        found = _range(f"{split}_items", text)
        for other, taken in ranges.items():
            if found.start < taken.stop and taken.start < found.stop:
                both = max(found.start, taken.start)
                raise OutOfBounds(
                    f"{split}_items must have no number in common with {other}_items, not {both}"
                )
        ranges[split] = found
    return ranges


def _range(option: str, text: str) -> range:
    found = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", text.strip(), flags=re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last <= MAX_SEED or last - first >= MAX_ITEMS:
        raise OutOfBounds(
            f"{option} must be FIRST-LAST such as 0-999, at most {MAX_ITEMS:,} numbers up to "
            f"{MAX_SEED:,}, not {text[:40]!r}"
        )
    return range(first, last + 1)


def seed_items(train: str = TRAIN, dev: str = DEV, test: str = TEST) -> Items:
    """An item for each seed of these ranges, see `split_ranges`."""
    return {
        split: {f"seed/{seed}": {"seed": seed} for seed in seeds}
        for split, seeds in split_ranges(train, dev, test).items()
    }
