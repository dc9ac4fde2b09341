"""Child processes: started here, read with a time limit, and ended before this process ends."""

import os
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

ENDING = threading.Event()
"""Set as soon as this process is about to end: nothing is started or tried again."""

_children: "weakref.WeakSet[subprocess.Popen[bytes]]" = weakref.WeakSet()
_lock = threading.Lock()


def start_child(arguments: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """A process that `end_children` ends; raises what `subprocess.Popen` raises.

    It leads a session of its own, since signals from the terminal are for this process to handle.
    """
    with _lock:
        if ENDING.is_set():
            raise SystemExit  # ends a thread without a word
        child = subprocess.Popen(arguments, bufsize=0, start_new_session=True, **options)
        _children.add(child)
    return child


def end_children() -> None:
    """Kills every child, stopped ones too; who waits for one of them notices at once."""
    ENDING.set()
    with _lock:
        for child in list(_children):
            child.kill()


class Lines:
    """Lines from a pipe, each awaited for a limited time."""

    def __init__(self, descriptor: int) -> None:
        """Reads the descriptor, and leaves it to others to close it."""
        self._descriptor = descriptor
        self._left = b""

    def next(self, seconds: float) -> bytes:
        """The next line without its end.

        Raises `TimeoutError` if it is not there in time and `EOFError` if it never will be.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._left:
            if not wait([self._descriptor], max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"gave no answer in {seconds:g} seconds")
            data = os.read(self._descriptor, 65536)
            if not data:
                raise EOFError
            self._left += data
        line, self._left = self._left.split(b"\n", 1)
        return line
