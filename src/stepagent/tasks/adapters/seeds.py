"""Items that are seeds: `seed/17` is the episode that `reset(seed=17)` begins."""

import re

from stepagent.bounds import MAX_SEED, OutOfBounds
from stepagent.tasks.adapters.foreign import Items
from stepagent.tasks.base import Split

TRAIN, DEV, TEST = "0-999", "1000000-1000999", "2000000-2000999"
"""Seeds of the splits. Demonstrations usually have small seeds, so dev and test stay away from."""

MAX_ITEMS = 1_000_000


def numbers_of(name: str, text: str) -> range:
    """The numbers of a range such as `0-999`, both ends included, or of a single one.

    `name` is the option, for the message of `OutOfBounds`.
    """
    found = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", text.strip(), flags=re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last <= MAX_SEED or last - first >= MAX_ITEMS:
        raise OutOfBounds(
            f"{name} must be FIRST-LAST such as 0-999, at most {MAX_ITEMS:,} numbers up to "
            f"{MAX_SEED:,}, not {text[:40]!r}"
        )
    return range(first, last + 1)


def seed_items(train: str = TRAIN, dev: str = DEV, test: str = TEST) -> Items:
    """An item for each seed of these ranges; raises `OutOfBounds` for a seed in two of them."""
    ranges: dict[Split, str] = {"train": train, "dev": dev, "test": test}
    items: dict[Split, dict[str, dict[str, int]]] = {}
    split_of: dict[str, Split] = {}
    for split, text in ranges.items():
        items[split] = {f"seed/{n}": {"seed": n} for n in numbers_of(f"{split}_items", text)}
        if both := next((item for item in items[split] if item in split_of), None):
            raise OutOfBounds(
                f"{split}_items must share no number with {split_of[both]}_items, "
                f"not {both.removeprefix('seed/')}"
            )
        split_of |= dict.fromkeys(items[split], split)
    return items
