"""A time limit for a whole HTTP exchange, however slowly its data trickles in."""

import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any


class Deadline:
    """A time limit for a whole exchange; when it expires, the connection is closed.

    The client's own limits apply to each read, so a server that sends a byte now and then, in its
    headers or its body, would be waited for forever.
    """

    def __init__(self, seconds: float) -> None:
        """The time starts when the `with` block is entered."""
        self.seconds = seconds
        self.is_over = False
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Deadline":
        """Starts the time."""
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the time."""
        self._timer.cancel()

    def begin_again(self) -> None:
        """Restarts the time."""
        self._timer.cancel()
        self._begin()

    def seconds_left(self) -> float:
        """Seconds that are left; raises TimeoutError if there are none."""
        left = self._until - time.monotonic()
        if self.is_over or left <= 0:
            raise TimeoutError
        return left

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """A `trace` callback for the client, which remembers its connections to close them."""
        if event.endswith("connect_tcp.complete"):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self.is_over:
                self._end()

    def _begin(self) -> None:
        self._until = time.monotonic() + self.seconds
        self._timer = threading.Timer(self.seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.is_over = True
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                # On the plain socket, below TLS: this only wakes the thread that waits for data.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
