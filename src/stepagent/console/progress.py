"""Progress bars with a time to go; silent where nobody is watching."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items; shows a bar on standard error if that is a terminal."""
    return iter(
        rich_track(
            items,
            description,
            total=total,
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
    )
