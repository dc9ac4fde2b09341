"""Limits the number of sessions of a served task, and takes seats from silent ones when full.

When all seats are taken, a client that has never sent a message loses its seat to a new client
after a few seconds. A client that is idle for a long time loses it in any case.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SILENT_SECONDS = 5.0
"""How long a client that has never sent a message keeps its seat while others wait."""

MAX_WAITING = 64
"""Most clients that may wait for a seat at a time."""

_POLL_SECONDS = 0.05


class Full(RuntimeError):
    """All sessions are in use."""


class Seat:
    """The right to one session."""

    def __init__(self) -> None:
        """A seat that is taken from now on."""
        self.is_silent = True
        """Whether its client has not sent a message yet."""
        self._since = asyncio.get_running_loop().time()
        self._timer: asyncio.Timeout | None = None

    def within(self, seconds: float) -> asyncio.Timeout:
        """A time limit for the client's next message, which `make_room` may cut short."""
        self._timer = asyncio.timeout(seconds)
        return self._timer

    def make_room(self) -> None:
        """Ends the wait for the client's first message if it has been silent for too long."""
        now = asyncio.get_running_loop().time()
        if now >= self._since + SILENT_SECONDS and self._timer and self.is_silent:
            self._timer.reschedule(now)


class Seats:
    """All seats of a server."""

    def __init__(self, limit: int) -> None:
        """`limit` is the number of seats."""
        self.limit = limit
        self._taken: set[Seat] = set()
        self._waiting = 0

    @asynccontextmanager
    async def take(self, *, wait: bool) -> AsyncIterator[Seat]:
        """Takes a seat for the duration of the block; raises `Full` if there is none.

        With `wait`, waits for the seat of a silent client if there is one.
        """
        while len(self._taken) >= self.limit:
            silent = [seat for seat in self._taken if seat.is_silent]
            if not (wait and silent) or self._waiting >= MAX_WAITING:
                raise Full(f"all {self.limit} sessions are in use")
            min(silent, key=lambda seat: seat._since).make_room()
            self._waiting += 1
            try:
                await asyncio.sleep(_POLL_SECONDS)
            finally:
                self._waiting -= 1
        seat = Seat()
        self._taken.add(seat)
        try:
            yield seat
        finally:
            self._taken.discard(seat)
