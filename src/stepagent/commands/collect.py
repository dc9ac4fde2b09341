"""`stepagent collect`: expert trajectories from a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.models import open_task
from stepagent.commands.parsing import (
    UsageError,
    check_at_least_one,
    check_new_file,
    run_command,
    unknown,
)
from stepagent.commands.prompted import (
    PREFIX,
    PROMPTED,
    PromptedConfig,
    model_name,
    open_client,
    open_prompted,
    play_all,
    print_bill,
)
from stepagent.demonstrations import collect, solved
from stepagent.evaluation import choose_items
from stepagent.journal import journal_path
from stepagent.pipeline import PANEL_SEED
from stepagent.settings import TaskConfig
from stepagent.tasks.base import Split
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory

OWN = "task"
"""Names the task's own expert."""


def collect_demonstrations(
    *,
    task_types: tuple[str, ...],
    out: Path,
    expert: str = OWN,
    split: Split = "train",
    num_per_type: int = 36,
    simplification: str = "easy",
    step_limit: int = TaskConfig.step_limit,
    seed: int = PANEL_SEED,
    num_parallel: int = 4,
    prompted: Annotated[PromptedConfig, tyro.conf.arg(name="")] = PROMPTED,
) -> None:
    """Writes what an expert does on items of some task types: the task's own, or a chat model.

    Reads nothing, or with a chat model DEMONSTRATIONS and GUIDE; writes OUT, one trajectory per
    line of JSON. Items that the expert does not solve are named and left out.

    With --expert openai:MODEL, every finished episode is written to OUT.episodes at once, solved or
    not: the same command goes on after a kill and pays for no episode twice. That file stays, since
    nothing else has the episodes that failed. The key is read from the environment variable
    OPENAI_API_KEY.

    For example: stepagent collect --task-types find-plant --out demonstrations.jsonl

    Args:
        task_types: ScienceWorld task types; `stepagent tasks` lists them.
        out: The file; a name that ends in .gz is compressed.
        expert: The task's own (task), or openai:MODEL on an OpenAI-compatible server.
        split: Which items to choose from.
        num_per_type: Items of each task type; all, where the split has fewer.
        simplification: The simulator's simplifications.
        step_limit: Steps after which a chat model's episode is cut off; the task's own expert has
            no limit.
        seed: Which items are chosen.
        num_parallel: Episodes that run at the same time.
        prompted: How a chat model is asked.
    """
    name = model_name(expert, prompted)
    if name is None and expert != OWN:
        raise UsageError(unknown("expert", expert, [OWN, f"{PREFIX}MODEL"]))
    check_at_least_one("--num-parallel", num_parallel)
    check_at_least_one("--num-per-type", num_per_type)
    check_new_file(out)
    client = open_client(name, prompted) if name else None
    config = TaskConfig(task_types=task_types, simplification=simplification, step_limit=step_limit)
    task = open_task(config)
    played: tuple[Trajectory, ...] = ()
    try:
        items = choose_items(task, split, num_per_type, seed=seed)
        if client:
            policy = open_prompted(client, prompted, task)
            played = play_all(policy, items, out, num_parallel=num_parallel)
            found = solved(played)
        else:
            found = collect(task, items, num_parallel=num_parallel)
    finally:
        task.close()
    for reason in found.failed:
        print(f"left out: {reason}")
    if client:
        print(f"episodes {journal_path(out)}")
        print_bill(played, prompted)
    if not found.trajectories:
        raise UsageError(f"the expert solved none of {len(items)} items; {out} is not written")
    write_jsonl(out, found.trajectories)
    steps = sum(len(t.steps) for t in found.trajectories)
    print(f"{out}: {len(found.trajectories)} of {len(items)} items, {steps} steps")


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(collect_demonstrations, "collect", args)
