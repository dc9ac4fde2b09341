"""`stepagent tasks`: which tasks there are."""

from collections.abc import Sequence

from stepagent.commands.parsing import run_command
from stepagent.tasks.scienceworld import SPLITS, ScienceWorld


def tasks(*, sizes: bool = False) -> None:
    """Lists the tasks, their engine and their task types.

    Reads and writes nothing.

    For example: stepagent tasks --sizes

    Args:
        sizes: Also count the items of each split, which starts the engine (seconds).
    """
    task = ScienceWorld()
    facts = task.facts()
    print(f"{task.name}: {facts['engine']}, Java {facts['java']}, both installed")
    width = max(map(len, task.task_types))
    if not sizes:
        print("\n".join(f"  {name}" for name in task.task_types))
        return
    try:
        groups = {s: [task.group(item) for item in task.items(s)] for s in SPLITS}
    finally:
        task.close()
    print(f"  {'task type':<{width}}" + "".join(f"{split:>7}" for split in SPLITS))
    for name in task.task_types:
        print(f"  {name:<{width}}" + "".join(f"{groups[s].count(name):>7}" for s in SPLITS))
    print(f"  {'all':<{width}}" + "".join(f"{len(groups[s]):>7}" for s in SPLITS))


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(tasks, "tasks", args)
