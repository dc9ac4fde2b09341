"""Locks between processes, so that only one process writes at a time.

The operating system releases them when the process ends, even by SIGKILL. On a file system without
locks, none is taken: a marker file would outlive a killed process.
"""

import errno
import fcntl
import logging
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from stepagent.console.printable import printable

logger = logging.getLogger(__name__)

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


class Taken(Exception):
    """Another process holds the lock."""


def lock(path: Path, *, wait: bool = False) -> BaseFileLock:
    """Locks a file until `release`; creates it if it is missing and keeps its content.

    If another process holds the lock, raises `Taken`, or waits with `wait`. Raises `OSError` that
    names the file if it cannot be locked. Warns once if the file system has no locks.
    """
    held = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        try:
            held.acquire()
        except Timeout:
            _check_allowed(path)
            if not wait:
                raise Taken from None
            held.acquire(timeout=-1)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            # The system call's own error names no file.
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"cannot be locked: {reason}", str(path)) from None
        _warn(path.parent)
    return held


def _check_allowed(path: Path) -> None:
    """Raises `OSError` if locking is forbidden, which filelock reports as a lock of another."""
    with open(path, "rb") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


@cache
def _warn(folder: Path) -> None:
    logger.warning(
        "%s: this file system has no locks; make sure that no other process writes there",
        printable(str(folder), limit=4096),
    )
