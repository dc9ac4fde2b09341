"""`stepagent collect`: expert trajectories from a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.models import TaskChoice, open_task
from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import (
    UsageError,
    check_at_least_one,
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
from stepagent.tasks.base import Split
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory

OWN = "task"
"""Names the task's own expert."""


def collect_demonstrations(
    *,
    task: TaskChoice,
    out: Path,
    overwrite: bool = False,
    expert: str = OWN,
    split: Split = "train",
    num_per_group: int = 36,
    seed: int = PANEL_SEED,
    num_parallel: int = 4,
    prompted: Annotated[PromptedConfig, tyro.conf.arg(name="")] = PROMPTED,
) -> None:
    """Writes what an expert does on items of a task: the task's own expert, or a chat model.

    Reads nothing, or with a chat model DEMONSTRATIONS and GUIDE; writes OUT, one trajectory per
    line of JSON. Items that the expert does not solve are named and left out.

    With --expert openai:MODEL, every finished episode is written to OUT.episodes at once, solved or
    not: the same command goes on after a kill and pays for no episode twice. That file stays, since
    nothing else has the episodes that failed. The key is read from the environment variable
    OPENAI_API_KEY.

    For example: stepagent collect scienceworld --task-types find-plant --out demonstrations.jsonl

    Args:
        task: Which task, under which protocol; its own expert has no step limit.
        out: The file; a name that ends in .gz is compressed.
        overwrite: Replace OUT if it exists.
        expert: The task's own (task), or openai:MODEL on an OpenAI-compatible server.
        split: Which items to choose from.
        num_per_group: Items of each group (task type, kind of question); all, where the split has
            fewer.
        seed: Which items are chosen.
        num_parallel: Episodes that run at the same time.
        prompted: How a chat model is asked.
    """
    name = model_name(expert, prompted)
    if name is None and expert != OWN:
        raise UsageError(unknown("expert", expert, [OWN, f"{PREFIX}MODEL"]))
    check_at_least_one("--num-parallel", num_parallel)
    check_at_least_one("--num-per-group", num_per_group)
    check_file(out, inputs=prompted.files, overwrite=overwrite)
    check_file(journal_path(out), inputs=prompted.files, overwrite=True)
    client = open_client(name, prompted) if name else None
    world = open_task(task)
    played: tuple[Trajectory, ...] = ()
    try:
        items = choose_items(world, split, num_per_group, seed=seed)
        if client:
            policy = open_prompted(client, prompted, world)
            played = play_all(policy, items, out, num_parallel=num_parallel)
            found = solved(played)
        else:
            found = collect(world, items, num_parallel=num_parallel)
    finally:
        world.close()
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
