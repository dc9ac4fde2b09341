"""Reads untrusted files within limits: regular files only, and bounded decompressed sizes.

Opening a named pipe would block forever, a device has no end, and a few kilobytes of gzip can
expand to gigabytes. `archives` does the same for members of archives.
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
"""Largest ratio of decompressed to compressed size; the densest real data (ALFWorld) reaches 70."""

ALWAYS_BYTES = 64 * 2**20
"""Decompressed size that is allowed for any file, however small."""

MAX_HELD_BYTES = 2 * 2**30
"""Largest content that is read into memory at once; Mind2Web's largest file has about a quarter."""

MAX_RECORD_BYTES = 8 * 2**20
"""Largest record of a file that is read record by record; real ones stay below one megabyte."""

MAX_DEPTH = 64
"""Deepest nesting of JSON that is read record by record; real records have less than ten levels."""

DAMAGED = (
    OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip
"""What reading damaged data raises; RuntimeError is an archive with a password."""

_CHUNK, _PIECE = 2**20, 2**12

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> IO[bytes]:
    """Opens a regular file; raises `TaskDataError` for a pipe, device or folder, or if missing."""
    try:
        # O_NONBLOCK: opening a pipe would otherwise wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TaskDataError(f"{path}: cannot be read: {error.strerror}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "not a file")
        raise TaskDataError(f"{path}: {kind}; expected a regular file")
    return open(descriptor, "rb")


def unpacked_limit(size: int) -> int:
    """How many bytes `size` compressed bytes may decompress to."""
    return max(ALWAYS_BYTES, MAX_RATIO * size)


class Content:
    """The content of a file or archive member, read piece by piece up to a limit.

    Raises `TaskDataError` beyond the limit, for a record that is too long, and for damaged data.
    """

    def __init__(self, stream: IO[bytes], name: str, limit: int) -> None:
        """`limit` is in bytes; `name` appears in messages."""
        self.name = name
        self._stream = stream
        self._limit = self._left = limit
        self._record_bytes = 0
        self._depth = _Depth()

    def read(self, size: int = _CHUNK) -> bytes:
        """The next bytes, at most `size`; empty at the end."""
        with self._undamaged():
            data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise TaskDataError(
                f"{self.name}: more than {self._limit:,} bytes; the limit is {MAX_RATIO} times "
                f"the compressed size, at least {ALWAYS_BYTES:,}, and at most {MAX_HELD_BYTES:,} "
                "for a file that is read at once"
            )
        return data

    def all(self) -> bytes:
        """Reads everything that is left into memory."""
        self._limit = min(self._limit, MAX_HELD_BYTES)
        self._left = min(self._left, MAX_HELD_BYTES)
        return b"".join(iter(self.read, b""))

    def lines(self) -> Iterator[bytes]:
        """Yields all lines; raises `TaskDataError` for one of more than `MAX_RECORD_BYTES`."""
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
        """Restarts the count of bytes: what is read from now on belongs to the next record."""
        self._record_bytes = 0

    def read_of_record(self, size: int = -1) -> bytes:
        """The next few bytes for a streaming parser; `begin_record` marks each new record.

        The nesting depth is checked before the parser sees the data: for every level the parser
        stores the names of all levels above it, so its memory would grow quadratically.
        """
        data = self.read(_PIECE if size else 0)
        self._record_bytes += len(data)
        self._check_record(self._record_bytes, "a record")
        if self._depth.after(data) > MAX_DEPTH:
            raise TaskDataError(
                f"{self.name}: JSON nested deeper than {MAX_DEPTH} levels; expected fewer"
            )
        return data

    def _check_record(self, size: int, what: str) -> None:
        if size > MAX_RECORD_BYTES:
            raise TaskDataError(
                f"{self.name}: {what} has more than {MAX_RECORD_BYTES:,} bytes; expected fewer"
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
    """Nesting depth of JSON that arrives in pieces; brackets inside strings do not count."""

    def __init__(self) -> None:
        self._now = 0
        self._in_text = self._after_backslash = False

    def after(self, data: bytes) -> int:
        """The deepest level within a piece, or an upper bound on it of at most `MAX_DEPTH`."""
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
    """The error for content of the file `name` that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if error.args and isinstance(error.args[0], bytes):  # from yajl, through ijson
        reason = error.args[0].decode("utf-8", "replace")
    reason = reason.partition("\n")[0]
    return TaskDataError(f"{name}: cannot be read (incomplete file?): {reason}")


@contextmanager
def open_content(path: Path) -> Iterator[Content]:
    """Opens a file, decompressed if its name ends in .gz; raises `TaskDataError`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if path.suffix != ".gz":
            yield Content(file, str(path), unpacked_limit(size))
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield Content(cast(IO[bytes], unpacked), str(path), unpacked_limit(size))
