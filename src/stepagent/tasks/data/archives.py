"""Members of zips and tars that others made: read where they are, never unpacked by their names.

Links are refused, sizes are limited as in `intake`, and what is cut short is an error, not an end.
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
    most_of,
    ordinary,
)

MAX_MEMBERS = 500_000
"""Of an archive; ALFWorld's largest has some ten thousand."""


@contextmanager
def zipped(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive of an acceptable number of members; raises `TaskDataError`."""
    with ordinary(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGED as error:
            raise damaged(str(path), error) from None
        with archive:
            _check_members(path, len(archive.infolist()))
            yield archive


@contextmanager
def member(
    archive: zipfile.ZipFile, path: Path, name: str, password: bytes | None = None
) -> Iterator[Content]:
    """What is in a member of the archive in the file `path`; raises `TaskDataError`."""
    shown = f"{path}/{name}"
    try:
        info = archive.getinfo(name)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise TaskDataError(f"{shown}: a symbolic link; expected an ordinary file")
        stream = archive.open(info, pwd=password)
    except TaskDataError:
        raise
    except (*DAMAGED, KeyError) as error:
        raise damaged(shown, error) from None
    with stream:
        yield Content(stream, shown, most_of(info.compress_size))


def tar_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, Callable[[], Content]]]:
    """Members of a tar, compressed or not, in order, with what opens the one at hand.

    Raises `TaskDataError`; links are members too, and opening one is an error.
    """
    with ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        outer = Content(_decompressed(file), str(path), most_of(size))
        try:
            with tarfile.open(fileobj=outer, mode="r|", tarinfo=_StrictInfo) as tar:  # type: ignore[call-overload]
                for number in count(1):
                    if (info := tar.next()) is None:
                        return
                    tar.members.clear()  # else it keeps them all
                    _check_members(path, number)
                    yield info, partial(_tar_content, tar, path, info)
        except TaskDataError:
            raise
        except DAMAGED as error:
            raise damaged(str(path), error) from None


class _StrictInfo(tarfile.TarInfo):
    """A header without which the archive is damaged; `TarFile` takes most faults for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no proper end: {error}") from None


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    """The file as its first bytes ask for, whatever its name says."""
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
        raise TaskDataError(f"{shown}: a link or a device; expected an ordinary file")
    # Not by its size on disk: out of a sparse file come holes that are not in the archive.
    return Content(stream, shown, ALWAYS_BYTES)


def _check_members(path: Path, number: int) -> None:
    if number > MAX_MEMBERS:
        raise TaskDataError(f"{path}: has more than {MAX_MEMBERS:,} members, which is the limit")
