"""Files that cannot be locked, and locks that another process holds."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from stepagent.files.locks import Taken, lock


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.EPERM, errno.EIO, errno.ESTALE, errno.EACCES]
)
def test_a_file_that_cannot_be_locked_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for wait in (False, True):
        with pytest.raises(OSError) as failed:
            lock(tmp_path / ".lock", wait=wait)
        assert failed.value.filename == str(tmp_path / ".lock")
        assert failed.value.strerror == f"cannot be locked: {os.strerror(number)}"


def test_a_lock_is_for_one_holder(tmp_path: Path) -> None:
    held = lock(tmp_path / ".lock")
    with pytest.raises(Taken):
        lock(tmp_path / ".lock")
    held.release()
    lock(tmp_path / ".lock").release()
