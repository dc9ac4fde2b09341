"""`stepagent collect`: expert trajectories from a task."""

from collections.abc import Sequence
from pathlib import Path

from stepagent.commands.models import open_task
from stepagent.commands.parsing import UsageError, check_new_file, run_command
from stepagent.demonstrations import collect
from stepagent.evaluation import choose_items
from stepagent.pipeline import PANEL_SEED, TaskConfig
from stepagent.tasks.base import Split
from stepagent.trajectories import write_jsonl


def collect_demonstrations(
    *,
    task_types: tuple[str, ...],
    out: Path,
    split: Split = "train",
    num_per_type: int = 36,
    simplification: str = "easy",
    seed: int = PANEL_SEED,
) -> None:
    """Writes what the task's own expert does on items of some task types.

    Reads nothing; writes OUT, one trajectory per line of JSON. Items that the expert does not solve
    are named and left out.

    For example: stepagent collect --task-types find-plant --out demonstrations.jsonl

    Args:
        task_types: ScienceWorld task types; `stepagent tasks` lists them.
        out: The file; a name that ends in .gz is compressed.
        split: Which items to choose from.
        num_per_type: Items of each task type; all, where the split has fewer.
        simplification: The simulator's simplifications.
        seed: Which items are chosen.
    """
    check_new_file(out)
    task = open_task(TaskConfig(task_types=task_types, simplification=simplification))
    try:
        items = choose_items(task, split, num_per_type, seed=seed)
        found = collect(task, items)
    finally:
        task.close()
    for reason in found.failed:
        print(f"left out: {reason}")
    if not found.trajectories:
        raise UsageError(f"the expert solved none of {len(items)} items; {out} is not written")
    write_jsonl(out, found.trajectories)
    steps = sum(len(t.steps) for t in found.trajectories)
    print(f"{out}: {len(found.trajectories)} of {len(items)} items, {steps} steps")


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(collect_demonstrations, "collect", args)
