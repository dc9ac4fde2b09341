"""Reads lines of untrusted files: regular files only, within limits, with one clear reason if not.

A file that is not UTF-8 text is recognised by its first bytes and named for what it is. gzip data
is decompressed whatever the file's name; the limits below stop a gzip bomb before it fills memory.
"""

import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_LINE = 256 * 2**20
"""Longest line in bytes; a JSON list of records that is written on one line counts as one."""
MAX_UNPACKED = 16 * 2**30
"""Most bytes that a gzip file may decompress to."""
MAX_RATIO = 500
"""Largest ratio of decompressed to compressed size; JSON rarely exceeds 50."""
FREE_OF_RATIO = 4 * 2**20
"""Decompressed bytes below which the ratio is not checked."""
MAX_BLANK = 10**6
"""Most blank lines of a file."""

EXPECTED = "expected a file of JSON lines"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_ARROW = f"{EXPECTED}, which the datasets library writes with to_json"
_UNPACK = f"{EXPECTED}; extract it first"
_UTF8 = "expected UTF-8; convert it first, e.g. with iconv"
PARQUET = b"PAR1"
_STARTS = (
    (PARQUET, "a Parquet file", f"{EXPECTED}; `stepagent import` reads Parquet"),
    (b"ARROW1", "an Arrow file", _ARROW),
    (b"\xff\xff\xff\xff", "an Arrow stream", _ARROW),
    (b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (b"PK\x05\x06", "an empty ZIP archive", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\xff\xfe\x00\x00", "text in UTF-32", _UTF8),
    (b"\x00\x00\xfe\xff", "text in UTF-32", _UTF8),
    (b"\xff\xfe", "text in UTF-16", _UTF8),
    (b"\xfe\xff", "text in UTF-16", _UTF8),
    (b"{\x00", "text in UTF-16", _UTF8),
    (b"[\x00", "text in UTF-16", _UTF8),
    (b"\x00{", "text in UTF-16", _UTF8),
    (b"\x00[", "text in UTF-16", _UTF8),
    (b"SQLite format 3\x00", "an SQLite database", EXPECTED),
    (b"GGUF", "a model in GGUF", EXPECTED),
    (b"\x93NUMPY", "a NumPy array", EXPECTED),
    (b"\x89HDF", "an HDF5 file", EXPECTED),
    (b"%PDF", "a PDF document", EXPECTED),
    (b"version https://git-lfs", "a Git LFS pointer", f"{EXPECTED}; `git lfs pull` fetches it"),
)  # fmt: skip
"""First bytes of a file, the kind of file they reveal, and what was expected or what to do."""


class Unreadable(Exception):
    """A file cannot be read; the message is the reason without the file's name."""

    def __init__(self, reason: str, line_number: int | None = None) -> None:
        super().__init__(reason)
        self.line_number = line_number


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes | str]]:
    """Yields each non-blank line with its number, counted from 1 with the blank ones.

    A text in place of a line says that the gzip data is damaged there. Raises `Unreadable`.
    """
    number = blank = 0
    with open_regular(path) as raw:
        head = raw.peek(1024)
        _check_kind(head, path)
        packed = head.startswith(_GZIP) or Path(path).suffix == ".gz"
        try:
            file = io.BufferedReader(_Unpacked(raw)) if packed else raw
            if packed:
                _check_kind(file.peek(1024), path)
            # In bytes, since text mode would also break lines at a lone carriage return.
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    reason = f"longer than {MAX_LINE >> 20} MiB; expected one record per line"
                    raise Unreadable(reason, number)
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if line.strip():
                    yield number, line
                elif (blank := blank + 1) > MAX_BLANK:
                    raise Unreadable(f"more than {MAX_BLANK:,} blank lines; {EXPECTED}", number)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            yield number + 1, "damaged or cut-off gzip data; expected a complete .gz file"
        except OSError as error:
            raise _failed(error) from None


def open_regular(path: str | Path, expected: str = EXPECTED) -> io.BufferedReader:
    """Opens a regular file for reading; raises `Unreadable` for a device, pipe or folder."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except ValueError:
        raise Unreadable(f"its name contains a NUL; {expected}") from None
    except FileNotFoundError:
        name = os.fspath(path)
        if name == "-":
            raise Unreadable(f"standard input is not read; {expected}") from None
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
            raise Unreadable("a URL; expected a local file, download it first") from None
        raise Unreadable(f"no such file; {expected}") from None
    except OSError as error:
        raise _failed(error, expected) from None
    if stat.S_ISDIR(mode):
        folder = Path(path)
        if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            raise Unreadable(
                f"a folder of the datasets library; {expected}, "
                "which load_from_disk(...).to_json(...) writes"
            )
        raise Unreadable(f"a directory; {expected}")
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise Unreadable(f"{kind}; {expected}")


def read_text(path: str | Path) -> str:
    """Reads a small text file, such as a prompt; raises `Unreadable`."""
    with open_regular(path, "expected a text file") as file:
        if len(data := file.read(MAX_LINE + 1)) > MAX_LINE:
            raise Unreadable(f"more than {MAX_LINE >> 20} MiB; expected a short text")
    try:
        return data.removeprefix(_BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8 text; expected a text file") from None


def _check_kind(head: bytes, path: str | Path) -> None:
    """Raises `Unreadable` if the first bytes, or the name, show that the file is not JSON."""
    for start, kind, expected in _STARTS:
        if head.startswith(start):
            raise Unreadable(f"{kind}; {expected}")
    if head[257:262] == b"ustar":
        raise Unreadable(f"a tar archive; {_UNPACK}")
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if re.match(rb"<(!doctype|html|\?xml|head|!--)", text, re.IGNORECASE):
        raise Unreadable(f"an HTML or XML page, perhaps a failed download; {EXPECTED}")
    name = Path(path).name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")) and text and text[:1] not in b"{[":
        raise Unreadable(f"a CSV table; {EXPECTED}, one object per row")


class _Unpacked(io.RawIOBase):
    """Decompresses gzip data; raises `Unreadable` beyond the limits."""

    def __init__(self, packed: io.BufferedReader) -> None:
        self._packed, self._file, self._size = packed, gzip.GzipFile(fileobj=packed), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._file.readinto(buffer)
        self._size += read
        allowed = max(FREE_OF_RATIO, MAX_RATIO * self._packed.tell())
        if self._size > min(allowed, MAX_UNPACKED):
            raise Unreadable(
                f"its first {self._packed.tell():,} bytes decompress to {self._size:,}; expected "
                f"at most {MAX_RATIO} times as many, and at most {MAX_UNPACKED >> 30} GiB"
            )
        return read


def _failed(error: OSError, expected: str = EXPECTED) -> Unreadable:
    return Unreadable(f"cannot be read: {error.strerror}; {expected}")
