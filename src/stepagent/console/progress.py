"""Progress bars with the remaining time; silent unless standard error is a terminal."""

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
    """Yields the items and shows a progress bar on standard error if that is a terminal.

    Only one bar is shown at a time, because two would overwrite each other. A bar that starts while
    another is shown stays silent: the outer one estimates the time until everything is done.
    """
    if not (sys.stderr.isatty() and _shown.acquire(blocking=False)):
        yield from items
        return
    try:
        console = Console(stderr=True)
        yield from rich_track(items, description, total=total, console=console, transient=True)
    finally:
        _shown.release()
