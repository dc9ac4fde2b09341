"""Warns, before anything is trained, of batches that the processes cannot share."""

import logging
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from stepagent.processes import ranks

logger = logging.getLogger(__name__)

ROWS_EACH = 8
"""Trajectories in a batch for each process with which shares are about equal."""


def warn_of_small_batches(settings: Any, *, unused: Collection[str] = ()) -> None:
    """Warns in one line of batch sizes in the settings that are below the number of processes.

    `unused` are fields of the settings that nothing is trained with.
    """
    count = ranks.count()
    small = [name for name, size in batch_sizes(settings, unused) if size < count]
    if small:
        logger.warning(
            "%d processes cannot share batches of fewer trajectories, so some will have nothing to "
            "do: %s; expected at least %d, for about equal shares %d",
            count, ", ".join(f"--{name}" for name in small), count, ROWS_EACH * count,
        )  # fmt: skip


def batch_sizes(settings: Any, unused: Collection[str] = ()) -> Iterator[tuple[str, int]]:
    """The options of all batch sizes, and their values."""
    for field in fields(settings):
        value, name = getattr(settings, field.name), field.name.replace("_", "-")
        if field.name == "batch_size":
            yield name, value
        elif is_dataclass(value) and field.name not in unused:
            for inner, size in batch_sizes(value):
                yield f"{name}.{inner}", size
