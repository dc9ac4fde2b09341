"""Lines of files that somebody else wrote: ordinary files only, within limits, or one clear reason.

A file that is no text in UTF-8 is named for what it is by its first bytes. gzip data is unpacked,
whatever the file's name; a gzip bomb ends at the limits below, before it fills the memory.
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
"""Bytes of a line; a list of records on one line counts as one."""
MAX_UNPACKED = 16 * 2**30
"""Bytes that a gzip file may unpack to."""
MAX_RATIO = 500
"""How many times its size gzip data may unpack to; JSON rarely gets beyond 50."""
FREE_OF_RATIO = 4 * 2**20
"""Unpacked bytes up to which the ratio does not count."""
MAX_BLANK = 10**6
"""Blank lines of a file."""

EXPECTED = "expected a file of JSON lines"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_ARROW = f"{EXPECTED}, which the datasets library writes with to_json"
_UNPACK = f"{EXPECTED}; unpack it first"
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
"""First bytes of a file, what they tell, and what to do."""


class Unreadable(Exception):
    """A file cannot be read; the message is the reason, without the file's name."""

    def __init__(self, reason: str, line_number: int | None = None) -> None:
        super().__init__(reason)
        self.line_number = line_number


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes | str]]:
    """Each line that is not blank, with its number; where gzip data is damaged, the reason instead.

    Blank lines count. Raises `Unreadable`.
    """
    number = blank = 0
    with open_ordinary(path) as raw:
        head = raw.peek(1024)
        _check_kind(head, path)
        packed = head.startswith(_GZIP) or Path(path).suffix == ".gz"
        try:
            file = io.BufferedReader(_Unpacked(raw)) if packed else raw
            if packed:
                _check_kind(file.peek(1024), path)
            # Bytes, since text mode would also end a line at a lone carriage return.
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    reason = f"longer than {MAX_LINE >> 20} MiB; expected one record on each line"
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


def open_ordinary(path: str | Path, expected: str = EXPECTED) -> io.BufferedReader:
    """A file opened for reading, if it is no device, pipe or folder; raises `Unreadable`."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except ValueError:
        raise Unreadable(f"a name with a NUL in it; {expected}") from None
    except FileNotFoundError:
        name = os.fspath(path)
        if name == "-":
            raise Unreadable(f"standard input is not read; {expected}") from None
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
            raise Unreadable("an address; expected a file on this machine, download it") from None
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
    """The whole text of a small file, such as a prompt; raises `Unreadable`."""
    with open_ordinary(path, "expected a file of text") as file:
        if len(data := file.read(MAX_LINE + 1)) > MAX_LINE:
            raise Unreadable(f"more than {MAX_LINE >> 20} MiB; expected a short text")
    try:
        return data.removeprefix(_BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError:
        raise Unreadable("not text in UTF-8; expected a file of text") from None


def _check_kind(head: bytes, path: str | Path) -> None:
    """Raises `Unreadable` for what is known by its first bytes, or its name, to be no JSON."""
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
        raise Unreadable(f"a table in CSV; {EXPECTED}, one object for each row")


class _Unpacked(io.RawIOBase):
    """What gzip data unpacks to, as long as that is within the limits."""

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
                f"its first {self._packed.tell():,} bytes unpack to {self._size:,}; expected less "
                f"than {MAX_RATIO} times as many, and {MAX_UNPACKED >> 30} GiB at most"
            )
        return read


def _failed(error: OSError, expected: str = EXPECTED) -> Unreadable:
    return Unreadable(f"cannot be read: {error.strerror}; {expected}")
