"""`stepagent tasks`: lists the tasks, or the items of one."""

from collections.abc import Sequence
from typing import Annotated, get_args

import tyro

from stepagent.commands.models import open_task
from stepagent.commands.parsing import UsageError, run_command, unknown
from stepagent.console.printable import printable
from stepagent.experiment.config import TASKS
from stepagent.tasks.base import Split, Task, TaskDataError
from stepagent.tasks.data.sources import data_folder
from stepagent.tasks.install import DATA, manifest_of

SPLITS: tuple[Split, ...] = get_args(Split)


def tasks(task: Annotated[str | None, tyro.conf.arg(metavar="[TASK]")] = None, /) -> None:
    """Lists all tasks and whether their data is installed, or counts the items of one task.

    Reads the installed data; writes nothing.

    For example: stepagent tasks webshop

    Args:
        task: Print the number of this task's items by group (task type, kind of question) and
            split, instead of the list of tasks.
    """
    if task is None:
        for name in TASKS:
            print(f"{name:<18}{_state(name)}")
        return
    if task not in TASKS:
        raise UsageError(unknown("task", task, TASKS))
    world = open_task(TASKS[task])
    try:
        world.facts()  # raises `TaskDataError` if no data is installed
        groups = {split: _groups(world, split) for split in SPLITS}
    finally:
        world.close()
    names = list(dict.fromkeys(name for own in groups.values() for name in own))
    width = max(map(len, [*names, "group"]))
    print(f"{'group':<{width}}" + "".join(f"{split:>7}" for split in SPLITS))
    for name in names:
        print(
            f"{printable(name):<{width}}" + "".join(f"{groups[s].count(name):>7}" for s in SPLITS)
        )
    print(f"{'all':<{width}}" + "".join(f"{len(groups[s]):>7}" for s in SPLITS))


def _groups(world: Task, split: Split) -> list[str]:
    """The group of each item of a split; empty if the data lacks the split."""
    try:
        return [world.group(item) for item in world.items(split)]
    except TaskDataError:
        return []


def _state(name: str) -> str:
    if name not in DATA:
        return "ready, needs no data"
    manifest = manifest_of(name)
    if manifest is None:
        return f"no data yet; get it with: stepagent download {name}"
    counts = ", ".join(f"{count} {printable(kind)}" for kind, count in manifest["counts"].items())
    return f"ready: {counts} ({data_folder(name)})"


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(tasks, "tasks", args)
