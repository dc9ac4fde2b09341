"""Main memory: what one update frees is kept for the next."""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""
_NEVER = 2**31 - 1
_LARGEST = 2**30
"""Bytes; larger blocks than this are still returned."""


def keep_freed_memory() -> None:
    """Keeps freed memory in this process, so that the peak of its use is what it holds.

    By default glibc returns large blocks to the system, which clears every page before it gives it
    back: on a CPU 5 to 10 % of the time of an update. Without glibc nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _NEVER)
