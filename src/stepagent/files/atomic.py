"""Atomic writes: a file or folder is complete or absent, even if the process is killed."""

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
"""Files that a killed process may leave behind; safe to delete while nothing is written."""

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextmanager
def atomic_write(path: str | Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Opens a binary file that becomes `path` when the block ends without an error.

    Raises `OSError` that names `path` if the disk is full or cannot be written and, without
    `replace`, if `path` exists by then.
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
    """Makes a folder that becomes `path`, which must be new or empty, if the block succeeds.

    With `replace`, it takes the place of an older folder. Folders cannot be exchanged in one step:
    if the process is killed between the two renames, the old one stays beside `path` under a name
    like `TEMPORARY`. Raises `OSError` that names `path` if the disk is full or cannot be written.
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
    """Turns every error about a full or failing disk into an `OSError` that names `path`."""
    try:
        yield
    except Exception as error:
        code = _disk_fault(error)
        if isinstance(error, OSError) and error.filename is not None:
            own = temporary is not None and Path(str(error.filename)).is_relative_to(temporary)
            code = error.errno if own else None  # an error of another file names that file already
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _disk_fault(error: Exception) -> int | None:
    """The error number if the error is about a full or failing disk."""
    if isinstance(error, OSError):
        return error.errno if error.errno in DISK_FAULTS else None
    # Rust libraries (tokenizers, safetensors) raise their own errors, with the number in the text.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number and int(number[1]) in DISK_FAULTS else None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with disk_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(temporary: Path, path: Path) -> None:
    """Renames, and syncs the folder so that the rename survives a power failure."""
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _put_new(temporary: Path, path: Path) -> None:
    """Renames, unless `path` exists by now."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(
            errno.EEXIST, "was created meanwhile and is kept; add --overwrite", str(path)
        ) from None
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(
                errno.EEXIST, "was created meanwhile and is kept; add --overwrite", str(path)
            ) from None
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
    # In the same folder, since a rename is atomic only within one file system.
    return path.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))
