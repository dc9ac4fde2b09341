"""How many sessions of a served task run at a time, and which of them give way to others.

Who connects and never says anything gives its place to whoever comes when all are taken, after a
few seconds. Who says nothing for a long time loses it in any case.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SILENT_SECONDS = 5.0
"""How long somebody who never said anything is left in peace while others wait."""

MAX_WAITING = 64
"""So many may wait for a place at a time."""

_LOOK_SECONDS = 0.05


class Full(RuntimeError):
    """There are as many sessions as may be."""


class Seat:
    """A place of one session."""

    def __init__(self) -> None:
        """It is taken now."""
        self.is_silent = True
        """Whether its holder has said nothing yet."""
        self._since = asyncio.get_running_loop().time()
        self._timer: asyncio.Timeout | None = None

    def within(self, seconds: float) -> asyncio.Timeout:
        """A time limit for hearing from its holder, which may be cut short for others."""
        self._timer = asyncio.timeout(seconds)
        return self._timer

    def make_room(self) -> None:
        """Takes it away if its holder has been silent for too long."""
        now = asyncio.get_running_loop().time()
        if now >= self._since + SILENT_SECONDS and self._timer and self.is_silent:
            self._timer.reschedule(now)


class Seats:
    """All places of a server."""

    def __init__(self, limit: int) -> None:
        """So many places."""
        self.limit = limit
        self._taken: set[Seat] = set()
        self._waiting = 0

    @asynccontextmanager
    async def take(self, *, is_patient: bool) -> AsyncIterator[Seat]:
        """A place while the block runs; raises `Full`.

        Who is patient waits for the place of somebody silent.
        """
        while len(self._taken) >= self.limit:
            silent = [seat for seat in self._taken if seat.is_silent]
            if not (is_patient and silent) or self._waiting >= MAX_WAITING:
                raise Full(f"all {self.limit} sessions are in use")
            min(silent, key=lambda seat: seat._since).make_room()
            self._waiting += 1
            try:
                await asyncio.sleep(_LOOK_SECONDS)
            finally:
                self._waiting -= 1
        seat = Seat()
        self._taken.add(seat)
        try:
            yield seat
        finally:
            self._taken.discard(seat)
