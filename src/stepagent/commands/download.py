"""`stepagent download`: installs the data of a task, from its official source or from disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.parsing import UsageError, run_command, unknown
from stepagent.console.printable import printable
from stepagent.experiment.config import TASKS
from stepagent.tasks.data.fetch import TIMEOUT_SECONDS
from stepagent.tasks.data.sources import data_folder
from stepagent.tasks.install import DATA, download, install, manifest_of, remove_leftovers


def download_task(
    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")],
    /,
    *,
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="FOLDER")] = None,
    skip_invalid: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Installs the data of a task: downloads it, or takes files that are already on disk.

    Reads the official source, or with --from the files anywhere below FOLDER; writes the task's
    folder in the user's cache (or in the folder that the variable STEPAGENT_TASK_DATA names).
    After an interruption, the same command resumes the download.

    For example: stepagent download webshop --from Downloads

    Args:
        task: Name of the task; `stepagent tasks` lists all.
        source: Folder with the official files, which may have been renamed.
        skip_invalid: Leave out unusable records and count them by reason, instead of stopping at
            the first.
        timeout_seconds: Seconds without, or almost without, data after which a server is given up.
    """
    if not timeout_seconds > 0:
        raise UsageError(f"--timeout-seconds must be above 0, not {timeout_seconds:g}")
    if task not in TASKS:
        raise UsageError(unknown("task", task, TASKS))
    if task not in DATA:
        raise UsageError(f"{task}: needs no data; it is ready to use")
    manifest = manifest_of(task)
    if manifest is not None and source is None:
        remove_leftovers(task)
        print(f"{data_folder(task)}: already installed")
    elif source is None:
        manifest = download(task, skip_invalid=skip_invalid, timeout_seconds=timeout_seconds)
    else:
        manifest = install(task, source, skip_invalid=skip_invalid)
    for reason, count in manifest["skipped"].items():
        print(f"left out {count}: {printable(reason, limit=4096)}")
    counts = ", ".join(f"{count} {printable(kind)}" for kind, count in manifest["counts"].items())
    print(f"{data_folder(task)}: {counts}")


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(download_task, "download", args)
