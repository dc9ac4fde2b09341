"""Starts child processes, reads their output with a time limit, and kills them at the end."""

import os
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

ENDING = threading.Event()
"""Set when this process is about to end: nothing is started or retried after that."""

_children: "weakref.WeakSet[subprocess.Popen[bytes]]" = weakref.WeakSet()
_lock = threading.Lock()


def start_child(arguments: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Starts a process that `end_children` will kill; raises what `subprocess.Popen` raises.

    It runs in its own session, so that signals from the terminal reach this process only.
    """
    with _lock:
        if ENDING.is_set():
            raise SystemExit  # ends the calling thread quietly
        child = subprocess.Popen(arguments, bufsize=0, start_new_session=True, **options)
        _children.add(child)
    return child


def end_children() -> None:
    """Kills every child, stopped ones too; threads that wait for one of them continue at once."""
    ENDING.set()
    with _lock:
        for child in list(_children):
            child.kill()


class Lines:
    """Reads lines from a pipe, each with a time limit."""

    def __init__(self, descriptor: int) -> None:
        """Reads the file descriptor; the caller closes it."""
        self._descriptor = descriptor
        self._left = b""

    def next(self, seconds: float) -> bytes:
        """The next line, without its line break.

        Raises `TimeoutError` after `seconds`, and `EOFError` if the pipe was closed.
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
