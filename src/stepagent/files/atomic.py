"""Files and folders that are there whole or not at all, whenever the process is killed."""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TEMPORARY = ".stepagent-*.tmp"
"""What a kill can leave behind; never read, and safe to delete while nobody writes."""

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextmanager
def atomic_write(path: str | Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends without an error.

    Raises `OSError` with the name `path` if the disk is full or cannot be written, or, unless it
    may `replace`, if somebody else has put something there meanwhile.
    """
    path = Path(path)
    temporary = _temporary(path)
    with disk_errors(path, temporary):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                _put(temporary, path)
            else:
                _put_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill; it becomes `path`, which must be new or empty, when the block ends well.

    With `replace` an older folder gives way to it. A folder cannot be exchanged in one step: a kill
    between two renames leaves the old one beside it, under a name like `TEMPORARY`.
    Raises `OSError` with the name `path` if the disk is full or cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    with disk_errors(path, temporary):
        try:
            temporary.mkdir()
            yield temporary
            for inner in temporary.rglob("*"):
                if inner.is_file():
                    with open(inner, "rb") as file:
                        os.fsync(file.fileno())
            if replace and path.exists():
                _exchange(temporary, path)
            else:
                _put(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """A disk that is full or fails is an `OSError` that names `path`, whoever noticed it."""
    try:
        yield
    except Exception as error:
        code = _disk_fault(error)
        if isinstance(error, OSError) and error.filename is not None:
            own = temporary is not None and Path(str(error.filename)).is_relative_to(temporary)
            code = error.errno if own else None  # another file has its name already
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _disk_fault(error: Exception) -> int | None:
    """The number of a fault of the disk, if that is what the error tells of."""
    if isinstance(error, OSError):
        return error.errno if error.errno in DISK_FAULTS else None
    # Libraries in Rust (tokenizers, safetensors) raise errors of their own, with the number in it.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found and int(found[1]) in DISK_FAULTS else None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal: whether it is the very same."""
    with disk_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(temporary: Path, path: Path) -> None:
    """The rename itself, made to last through a power cut by writing the folder out too."""
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _put_new(temporary: Path, path: Path) -> None:
    """The file under its name, if nothing else has it by then."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(
            errno.EEXIST, "exists by now, and is left as it is; add --overwrite", str(path)
        ) from None
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists by now", str(path)) from None
        os.replace(temporary, path)
    _sync_folder(path.parent)


def _exchange(temporary: Path, path: Path) -> None:
    old = _temporary(path)
    os.replace(path, old)
    try:
        _put(temporary, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def _temporary(path: Path) -> Path:
    # Beside the target, since a rename is atomic only within one file system.
    return path.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))
