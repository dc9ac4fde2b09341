"""A time limit for a whole exchange over HTTP, however little comes at a time."""

import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any


class Deadline:
    """A time limit for a whole exchange, which ends the connection when it is over.

    The client's own limits are for each piece, and a server that sends a byte now and then, in its
    headers or its body, would be waited for without end.
    """

    def __init__(self, seconds: float) -> None:
        """It begins with the block."""
        self.seconds = seconds
        self.is_over = False
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Deadline":
        """The time runs."""
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        """The time is not needed any more."""
        self._timer.cancel()

    def begin_again(self) -> None:
        """Gives the whole time once more."""
        self._timer.cancel()
        self._begin()

    def seconds_left(self) -> float:
        """How much is left; raises TimeoutError if that is nothing."""
        left = self._until - time.monotonic()
        if self.is_over or left <= 0:
            raise TimeoutError
        return left

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Takes note of the connection, as a `trace` of the client."""
        if event.endswith("connect_tcp.complete"):
            found = info["return_value"].get_extra_info("socket")
            self._sockets.append(found)
            if self.is_over:
                self._end()

    def _begin(self) -> None:
        self._until = time.monotonic() + self.seconds
        self._timer = threading.Timer(self.seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.is_over = True
        for found in self._sockets:
            with contextlib.suppress(OSError):
                # Of the plain socket, whatever stands around it: that only ends the waiting.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
