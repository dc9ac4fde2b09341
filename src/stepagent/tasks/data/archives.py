"""Reads members of untrusted zip and tar archives in place; nothing is extracted to disk.

Links are refused, sizes are limited as in `limited_reader`, and a truncated archive is an error.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Self, cast

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.limited_reader import (
    ALWAYS_BYTES,
    DAMAGED,
    Content,
    damaged,
    open_regular,
    unpacked_limit,
)

MAX_MEMBERS = 500_000
"""Most members an archive may have; ALFWorld's largest has about ten thousand."""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive; raises `TaskDataError` if it is damaged or has too many members."""
    with open_regular(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGED as error:
            raise damaged(str(path), error) from None
        with archive:
            _check_members(path, len(archive.infolist()))
            yield archive


@contextmanager
def open_member(
    archive: zipfile.ZipFile, path: Path, name: str, password: bytes | None = None
) -> Iterator[Content]:
    """Opens a member of the zip archive at `path`; raises `TaskDataError` for a link or damage."""
    shown = f"{path}/{name}"
    try:
        info = archive.getinfo(name)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise TaskDataError(f"{shown}: a symbolic link; expected a regular file")
        stream = archive.open(info, pwd=password)
    except TaskDataError:
        raise
    except (*DAMAGED, KeyError) as error:
        raise damaged(shown, error) from None
    with stream:
        yield Content(stream, shown, unpacked_limit(info.compress_size))


def tar_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, Callable[[], Content]]]:
    """Yields each member of a tar, compressed or not, with a function that opens its content.

    The function works only until the next member is taken. Raises `TaskDataError`; links are
    yielded as well, but opening one is an error.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        outer = Content(_decompressed(file), str(path), unpacked_limit(size))
        try:
            with tarfile.open(fileobj=outer, mode="r|", tarinfo=_StrictInfo) as tar:  # type: ignore[call-overload]
                for number in count(1):
                    if (info := tar.next()) is None:
                        return
                    tar.members.clear()  # otherwise tarfile remembers every member
                    _check_members(path, number)
                    yield info, partial(_tar_content, tar, path, info)
        except TaskDataError:
            raise
        except DAMAGED as error:
            raise damaged(str(path), error) from None


class _StrictInfo(tarfile.TarInfo):
    """Raises an error for a bad header, which `TarFile` mostly takes for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"bad header: {error}") from None


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    """Decompresses by the file's first bytes, whatever its name says."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if start.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return lzma.LZMAFile(file) if start.startswith(b"\xfd7zXZ") else file


def _tar_content(tar: tarfile.TarFile, path: Path, info: tarfile.TarInfo) -> Content:
    shown = f"{path}/{info.name}"
    stream = tar.extractfile(info) if info.isfile() else None
    if stream is None:
        raise TaskDataError(f"{shown}: a link or a device; expected a regular file")
    # The size in the archive gives no limit: a sparse member expands to holes that are not stored.
    return Content(stream, shown, ALWAYS_BYTES)


def _check_members(path: Path, number: int) -> None:
    if number > MAX_MEMBERS:
        raise TaskDataError(f"{path}: more than {MAX_MEMBERS:,} members; expected fewer")
