"""Locks between processes: one writer at a time, for as long as the process lives.

The operating system holds them, so they end with the process, also by SIGKILL. A file system that
has none is used without: a marker file instead would outlive a process that is killed.
"""

import errno
import logging
from functools import cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from stepagent.trajectories import printable

logger = logging.getLogger(__name__)

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


class Taken(Exception):
    """Another process holds the lock."""


def lock(path: Path, *, wait: bool = False) -> BaseFileLock:
    """Locks a file, which is made if it is missing and whose content stays; `release` ends it.

    Raises `Taken` if another process holds it, unless it is to `wait`. Where the file system has no
    locks, a warning says so once.
    """
    held = FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        raise Taken from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn(path.parent)
    return held


@cache
def _warn(folder: Path) -> None:
    logger.warning(
        "%s: this file system has no locks; let no other process write there",
        printable(str(folder), limit=4096),
    )
