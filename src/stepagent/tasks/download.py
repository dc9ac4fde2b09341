"""Gets the data of tasks: official files over the network, or files that are on disk already.

Files come into `<task>.download` beside the task's folder; what the task reads is made of them in
one step, so that the folder is whole or not there. Its `manifest.json` says what was read, by hash,
and what was written.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from stepagent.atomic import atomic_folder, atomic_write, file_hash
from stepagent.locks import Taken, lock
from stepagent.tasks import alfworld_games, mind2web_data, qa_data, webshop
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data import TaskData, data_folder
from stepagent.tasks.fetch import fetch

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
    target = data_folder(task)
    if not source.is_dir():
        raise TaskDataError(f"{source}: no such folder; expected one with the data of {task}")
    _check_is_free(task)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as out:
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


def download(task: str, *, skip_invalid: bool = False) -> dict[str, Any]:
    """Fetches the official files, makes the task's data of them, and removes them again.

    If they cannot be used, they stay, so that `skip_invalid` can be tried without fetching again.
    """
    _check_is_free(task)
    folder = data_folder(task).with_name(f"{task}.download")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for source in DATA[task].sources:
            fetch(source, folder, task)
        try:
            manifest = install(task, folder, skip_invalid=skip_invalid)
        except TaskDataError as error:
            if all(source.sha256 for source in DATA[task].sources):
                raise
            raise TaskDataError(
                f"{error}; if the download is to blame, delete {folder} and run the command again"
            ) from None
    # Without the lock: network file systems cannot remove a folder with an open file.
    shutil.rmtree(folder)
    return manifest


def _check_is_free(task: str) -> None:
    """Raises `TaskDataError` unless the task's folder is missing or empty."""
    target = data_folder(task)
    is_folder = target.is_dir() and not target.is_symlink()
    is_free = not any(target.iterdir()) if is_folder else not os.path.lexists(target)
    if not is_free:
        raise TaskDataError(f"{target}: the data of {task} is there; to make it anew, remove it")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second download from writing to the same files."""
    try:
        held = lock(folder / ".lock")
    except Taken:
        raise TaskDataError(f"{folder}: another process is downloading into it") from None
    try:
        yield
    finally:
        held.release()
