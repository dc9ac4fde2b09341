"""Installs the data of tasks, from official files that are downloaded or already on disk.

Downloads go to `<task>.download` beside the task's folder. The data that the task reads is prepared
in `<task>.unfinished` and renamed in one step, so the task's folder is complete or absent. Its
`manifest.json` lists the files that were read, with their hashes, and the records written.
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
from stepagent.tasks.alfworld import games as alfworld_games
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.fetch import TIMEOUT_SECONDS, fetch
from stepagent.tasks.data.sources import TaskData, data_folder
from stepagent.tasks.mind2web import data as mind2web_data
from stepagent.tasks.qa import data as qa_data
from stepagent.tasks.webshop import data as webshop_data

DATA: dict[str, TaskData] = {
    "alfworld": TaskData(alfworld_games.SOURCES, alfworld_games.prepare),
    "webshop": TaskData(webshop_data.SOURCES, webshop_data.prepare),
    "mind2web": TaskData(mind2web_data.SOURCES, mind2web_data.prepare),
    **{
        name: TaskData(sources, partial(qa_data.prepare, name))
        for name, sources in qa_data.SOURCES.items()
    },
}
"""Where the data of each task comes from; tasks without data are not listed."""

MANIFEST = "manifest.json"


def install(task: str, source: Path, *, skip_invalid: bool = False) -> dict[str, Any]:
    """Prepares the task's data from files anywhere below `source`; returns its manifest.

    Raises `TaskDataError` if the folder or the data in it cannot be used.
    """
    if not source.is_dir():
        raise TaskDataError(f"{source}: no such folder; expected one with the data of {task}")
    _check_is_free(task)
    with _locked(task):
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
    """A folder that becomes the task's data folder if the block succeeds.

    Its name is fixed, so that the next start removes what a killed process left behind.
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
    """The manifest that `install` wrote; None if the task's data is not installed."""
    path = data_folder(task) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), dict) for name in ("counts", "skipped")
    ):
        raise TaskDataError(f"{path}: damaged; remove the folder and download {task} again")
    return manifest


def download(
    task: str, *, skip_invalid: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Downloads the official files, prepares the task's data from them, then deletes them.

    Returns the manifest. If the files cannot be used, they stay, so that `skip_invalid` can be
    tried without another download. Raises `TaskDataError`.
    """
    _check_is_free(task)
    folder = _download_folder(task)
    with _locked(task):
        for source in DATA[task].sources:
            fetch(source, folder, task, timeout_seconds=timeout_seconds)
        try:
            manifest = _install(task, folder, skip_invalid)
        except TaskDataError as error:
            if all(source.sha256 for source in DATA[task].sources):
                raise
            raise TaskDataError(
                f"{error}; if the download is at fault, delete {folder} and run the command again"
            ) from None
    # After the lock is released: network file systems cannot remove a folder with an open file.
    shutil.rmtree(folder, ignore_errors=True)
    return manifest


def remove_leftovers(task: str) -> None:
    """Removes what a killed process left beside the data, unless another process is at work."""
    unfinished = data_folder(task).with_name(f"{task}.unfinished")
    if _download_folder(task).exists() or unfinished.exists():
        with suppress(TaskDataError), _locked(task):
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(_download_folder(task), ignore_errors=True)


def _download_folder(task: str) -> Path:
    return data_folder(task).with_name(f"{task}.download")


def _check_is_free(task: str) -> None:
    """Raises `TaskDataError` unless the task's folder is missing or empty."""
    target = data_folder(task)
    is_folder = target.is_dir() and not target.is_symlink()
    is_free = not any(target.iterdir()) if is_folder else not os.path.lexists(target)
    if not is_free:
        raise TaskDataError(
            f"{target}: the data of {task} is already installed; remove it to install it again"
        )


@contextmanager
def _locked(task: str) -> Iterator[None]:
    """Keeps other processes from installing the same task; removes an empty download folder."""
    folder = _download_folder(task)
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
