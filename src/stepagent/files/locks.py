"""Locks between processes: one writer at a time, for as long as the process lives.

The operating system holds them, so they end with the process, also by SIGKILL. A file system that
has none is used without: a marker file instead would outlive a process that is killed.
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
    """Locks a file, which is made if it is missing and whose content stays; `release` ends it.

    Raises `Taken` if another process holds it, unless it is to `wait`, and `OSError` that names the
    file if it cannot be locked. Where the file system has no locks, a warning says so once.
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
            # The lock's own call names no file.
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"cannot be locked: {reason}", str(path)) from None
        _warn(path.parent)
    return held


def _check_allowed(path: Path) -> None:
    """Raises `OSError` if locks are forbidden there, which filelock takes for another's lock."""
    with open(path, "rb") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


@cache
def _warn(folder: Path) -> None:
    logger.warning(
        "%s: this file system has no locks; let no other process write there",
        printable(str(folder), limit=4096),
    )
