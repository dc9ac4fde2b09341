"""Files that others made, opened with care: ordinary files only, and no more than makes sense.

A named pipe would be waited for without end, a device has no end, and a few kilobytes of gzip
can stand for gigabytes. `archives` does the same for what is in archives.
"""

import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from stepagent.tasks.base import TaskDataError

MAX_RATIO = 200
"""How much larger than on disk content may be; the densest real file, ALFWorld's games, has 70."""

ALWAYS_BYTES = 64 * 2**20
"""So much may come out of any file, however small."""

MAX_HELD_BYTES = 2 * 2**30
"""Of content that is held in memory as a whole; Mind2Web's largest file has about a quarter."""

MAX_RECORD_BYTES = 8 * 2**20
"""Of one record of a file that is read record by record; real ones stay below one megabyte."""

MAX_DEPTH = 64
"""Levels of JSON that is read record by record; real records have less than ten."""

DAMAGED = (
    OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip
"""What reading damaged data raises; an archive with a password is a RuntimeError."""

_CHUNK, _PIECE = 2**20, 2**12

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def ordinary(path: Path) -> IO[bytes]:
    """The open file; raises `TaskDataError` for a pipe, a device, a folder, and where none is."""
    try:
        # Without waiting: nobody may ever write into a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TaskDataError(f"{path}: cannot be read: {error.strerror}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
        raise TaskDataError(f"{path}: {kind}; expected an ordinary file")
    return open(descriptor, "rb")


def most_of(size: int) -> int:
    """How many bytes may come out of so many compressed ones."""
    return max(ALWAYS_BYTES, MAX_RATIO * size)


class Content:
    """What is in a file or a member of an archive, in pieces, up to a limit.

    Raises `TaskDataError` beyond it, for a record that is too long, and for damaged data.
    """

    def __init__(self, stream: IO[bytes], name: str, limit: int) -> None:
        """`name` is for messages."""
        self.name = name
        self._stream = stream
        self._limit = self._left = limit
        self._record_bytes = 0
        self._depth = _Depth()

    def read(self, size: int = _CHUNK) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        with self._undamaged():
            data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise TaskDataError(
                f"{self.name}: has more than {self._limit:,} bytes; the limit is {MAX_RATIO} times "
                f"the compressed size, at least {ALWAYS_BYTES:,} and at most {MAX_HELD_BYTES:,} "
                "where all is read at once"
            )
        return data

    def all(self) -> bytes:
        """Everything that is left, for content that is held in memory."""
        self._limit = min(self._limit, MAX_HELD_BYTES)
        self._left = min(self._left, MAX_HELD_BYTES)
        return b"".join(iter(self.read, b""))

    def lines(self) -> Iterator[bytes]:
        """All lines; raises `TaskDataError` for one that is longer than a record may be."""
        left, number = b"", 0
        while data := self.read():
            *whole, left = (left + data).split(b"\n")
            for line in (*whole, *([left] if len(left) > MAX_RECORD_BYTES else [])):
                number += 1
                self._check_record(len(line), f"line {number}")
                yield line + b"\n"
        if left:
            yield left

    def begin_record(self) -> None:
        """Counts anew: what is read from now on belongs to the next record."""
        self._record_bytes = 0

    def of_records(self, size: int = -1) -> bytes:
        """The next few bytes, for a parser; who calls it says when a record begins.

        The parser keeps a name for every level with the names of all levels above in it, which
        takes quadratic memory: nesting is found here, before the parser sees it.
        """
        data = self.read(_PIECE if size else 0)
        self._record_bytes += len(data)
        self._check_record(self._record_bytes, "a record")
        if self._depth.after(data) > MAX_DEPTH:
            raise TaskDataError(
                f"{self.name}: JSON of more than {MAX_DEPTH} levels; expected records of fewer"
            )
        return data

    def _check_record(self, size: int, what: str) -> None:
        if size > MAX_RECORD_BYTES:
            raise TaskDataError(
                f"{self.name}: {what} has more than {MAX_RECORD_BYTES:,} bytes; expected less"
            )

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except TaskDataError:
            raise
        except DAMAGED as error:
            raise damaged(self.name, error) from None


class _Depth:
    """How deep JSON is nested that comes in pieces; brackets in texts do not count."""

    def __init__(self) -> None:
        self._now = 0
        self._in_text = self._after_backslash = False

    def after(self, data: bytes) -> int:
        """The deepest level within a piece, or a number that is no less and not too deep."""
        data = b"\\" * self._after_backslash + data
        without = re.sub(rb"\\.", b"", data, flags=re.DOTALL)
        self._after_backslash = without.endswith(b"\\")
        parts = without.split(b'"')
        structure = b"".join(parts[self._in_text :: 2])
        self._in_text ^= len(parts) % 2 == 0
        opened = structure.count(b"[") + structure.count(b"{")
        deepest = before = self._now
        self._now += opened - structure.count(b"]") - structure.count(b"}")
        if before + opened <= MAX_DEPTH:
            return before + opened
        for bracket in re.findall(rb"[][{}]", structure):
            before += 1 if bracket in b"[{" else -1
            deepest = max(deepest, before)
        return deepest


def damaged(name: str, error: Exception) -> TaskDataError:
    """The error for content that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if error.args and isinstance(error.args[0], bytes):  # from yajl, by way of ijson
        reason = error.args[0].decode("utf-8", "replace")
    return TaskDataError(f"{name}: cannot be read, is it whole? {reason.partition(chr(10))[0]}")


@contextmanager
def content(path: Path) -> Iterator[Content]:
    """What is in a file, decompressed if its name ends in .gz; raises `TaskDataError`."""
    with ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        if path.suffix != ".gz":
            yield Content(file, str(path), most_of(size))
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield Content(cast(IO[bytes], unpacked), str(path), most_of(size))
