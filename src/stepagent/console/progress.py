"""Progress bars with a time to go; silent where nobody is watching."""

import sys
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")

_shown = Lock()
"""Held by the bar on the screen."""


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items; shows a bar on standard error if that is a terminal.

    One bar is shown at a time, since two would overwrite each other: a bar that begins within
    another stays silent, because the outer one knows the time until everything is done.
    """
    if not (sys.stderr.isatty() and _shown.acquire(blocking=False)):
        yield from items
        return
    try:
        console = Console(stderr=True)
        yield from rich_track(items, description, total=total, console=console, transient=True)
    finally:
        _shown.release()
