"""Gets the data of tasks: official files over the network, or files that are on disk already.

Files come into `<task>.download` beside the task's folder; what the task reads is made of them in
`<task>.unfinished` and gets its name in one step, so that the folder is whole or not there. Its
`manifest.json` says what was read, by hash, and what was written.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from stepagent.files.atomic import atomic_folder, atomic_write, file_hash
from stepagent.files.locks import Taken, lock
from stepagent.tasks import webshop
from stepagent.tasks.alfworld import games as alfworld_games
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.fetch import TIMEOUT_SECONDS, fetch
from stepagent.tasks.data.files import TaskData, data_folder
from stepagent.tasks.mind2web import data as mind2web_data
from stepagent.tasks.qa import data as qa_data

DATA: dict[str, TaskData] = {
    "alfworld": TaskData(alfworld_games.SOURCES, alfworld_games.prepare),
    "webshop": TaskData(webshop.SOURCES, webshop.prepare),
    "mind2web": TaskData(mind2web_data.SOURCES, mind2web_data.prepare),
    **{
        name: TaskData(sources, partial(qa_data.prepare, name))
        for name, sources in qa_data.SOURCES.items()
    },
}
"""The data of every task that has any."""

MANIFEST = "manifest.json"


def install(task: str, source: Path, *, skip_invalid: bool = False) -> dict[str, Any]:
    """Makes the task's data of files anywhere below `source`; returns its manifest."""
    if not source.is_dir():
        raise TaskDataError(f"{source}: no such folder; expected one with the data of {task}")
    _check_is_free(task)
    with _alone(task):
        return _install(task, source, skip_invalid)


def _install(task: str, source: Path, skip_invalid: bool) -> dict[str, Any]:
    with _unfinished(task) as out:
        prepared = DATA[task].prepare(source, out, skip_invalid=skip_invalid)
        manifest = {
            "task": task,
            "counts": dict(prepared.counts),
            "skipped": dict(prepared.skipped),
            "read": {str(f.relative_to(source)): file_hash(f) for f in prepared.read},
        }
        with atomic_write(out / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode())
    return manifest


@contextmanager
def _unfinished(task: str) -> Iterator[Path]:
    """A folder that becomes the task's when the block ends well.

    It has a fixed name, so that what a kill leaves behind is gone with the next start.
    """
    out = data_folder(task).with_name(f"{task}.unfinished")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        with atomic_folder(out / "data") as inner:
            yield inner
        _check_is_free(task)
        os.replace(out / "data", data_folder(task))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def manifest_of(task: str) -> dict[str, Any] | None:
    """What `install` wrote; None if the task's data is not there."""
    path = data_folder(task) / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(found.get(name), dict) for name in ("counts", "skipped")
    ):
        raise TaskDataError(f"{path}: damaged; remove the folder and download {task} again")
    return found


def download(
    task: str, *, skip_invalid: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Fetches the official files, makes the task's data of them, and removes them again.

    If they cannot be used, they stay, so that `skip_invalid` can be tried without fetching again.
    """
    _check_is_free(task)
    folder = _fetched(task)
    with _alone(task):
        for source in DATA[task].sources:
            fetch(source, folder, task, timeout_seconds=timeout_seconds)
        try:
            manifest = _install(task, folder, skip_invalid)
        except TaskDataError as error:
            if all(source.sha256 for source in DATA[task].sources):
                raise
            raise TaskDataError(
                f"{error}; if the download is to blame, delete {folder} and run the command again"
            ) from None
    # Without the lock: network file systems cannot remove a folder with an open file.
    shutil.rmtree(folder, ignore_errors=True)
    return manifest


def remove_leftovers(task: str) -> None:
    """What a kill left behind after the data was there; nothing while somebody works on it."""
    if _fetched(task).exists() or data_folder(task).with_name(f"{task}.unfinished").exists():
        with suppress(TaskDataError), _alone(task):
            shutil.rmtree(data_folder(task).with_name(f"{task}.unfinished"), ignore_errors=True)
            shutil.rmtree(_fetched(task), ignore_errors=True)


def _fetched(task: str) -> Path:
    return data_folder(task).with_name(f"{task}.download")


def _check_is_free(task: str) -> None:
    """Raises `TaskDataError` unless the task's folder is missing or empty."""
    target = data_folder(task)
    is_folder = target.is_dir() and not target.is_symlink()
    is_free = not any(target.iterdir()) if is_folder else not os.path.lexists(target)
    if not is_free:
        raise TaskDataError(f"{target}: the data of {task} is there; to make it anew, remove it")


@contextmanager
def _alone(task: str) -> Iterator[None]:
    """Keeps a second process from working on the same task; its folder is gone if left empty."""
    folder = _fetched(task)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    try:
        held = lock(path)
    except Taken:
        raise TaskDataError(f"{folder}: another process is downloading into it") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.release()
        with suppress(OSError):
            folder.rmdir()
