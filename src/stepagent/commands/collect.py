"""`stepagent collect`: records demonstrations (expert trajectories) in a task."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import JsonValue

from stepagent.chat.episodes import protocol_of
from stepagent.commands.chat_models import (
    PREFIX,
    PROMPTED,
    PromptedConfig,
    model_name,
    open_client,
    open_prompted,
    play_all,
    print_bill,
    print_lost,
)
from stepagent.commands.episode_journal import PLAYED, drop_journal, is_kept, journal_path, kept
from stepagent.commands.models import TaskChoice, open_task
from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import (
    UsageError,
    check_at_least_one,
    run_command,
    unknown,
)
from stepagent.console.printable import printable
from stepagent.evaluation import choose_items
from stepagent.experiment.pipeline import PANEL_SEED
from stepagent.processes import ranks
from stepagent.tasks.base import Split
from stepagent.tasks.demonstrations import demonstrate, solved, sorted_out
from stepagent.tasks.tries import Lost
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory

OWN = "task"
"""The value of --expert that means the task's own expert."""


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
    """Records demonstrations: lets an expert play items of a task and writes what it did.

    The expert is the task's own or a chat model. Reads the task's data, and for a chat model
    DEMONSTRATIONS and GUIDE; writes OUT, one trajectory per line of JSON. Items that the expert
    does not solve, or whose environment fails repeatedly, are listed and left out.

    Finished episodes are saved to OUT.episodes immediately. If interrupted, run the same command
    again: it resumes there, repeats no finished episode and retries failed environments. The file
    is removed once OUT is complete, except with --expert openai:MODEL, when it is the only copy of
    the unsolved episodes.

    For example: stepagent collect scienceworld --task-types find-plant --out demonstrations.jsonl

    Args:
        task: The task and its protocol. The step limit does not apply to the task's own expert.
        out: File for the demonstrations; a name that ends in .gz is compressed.
        overwrite: Replace OUT if it exists.
        expert: `task` for the task's own expert, or openai:MODEL for a chat model on an
            OpenAI-compatible server; its key is read from the variable OPENAI_API_KEY.
        split: The part of the task's items to choose from.
        num_per_group: Items of each group (task type, kind of question), or all if the split has
            fewer.
        seed: Random seed of the choice of items.
        num_parallel: Episodes played at the same time.
        prompted: How a chat model is prompted.
    """
    name = model_name(expert, prompted)
    if name is None and expert != OWN:
        raise UsageError(unknown("expert", expert, [OWN, f"{PREFIX}MODEL"]))
    check_at_least_one("--num-parallel", num_parallel)
    check_at_least_one("--num-per-group", num_per_group)
    may_replace = overwrite or is_kept(out)
    check_file(out, inputs=prompted.files, overwrite=may_replace)
    check_file(journal_path(out), inputs=prompted.files, overwrite=True)
    client = open_client(name, prompted) if name else None
    world = open_task(task)
    played: tuple[Trajectory, ...] = ()
    try:
        items = choose_items(world, split, num_per_group, seed=seed)
        if client:
            policy = open_prompted(client, prompted, world)
            outcomes = play_all(policy, items, out, num_parallel=num_parallel)
            played = tuple(t for t in outcomes if isinstance(t, Trajectory))
            found = solved(played, [lost for lost in outcomes if isinstance(lost, Lost)])
        else:
            play = partial(demonstrate, world, num_parallel=num_parallel)
            how: dict[str, JsonValue] = {PLAYED: {"expert": expert, "protocol": protocol_of(world)}}
            found = sorted_out(kept(out, items, lambda _: how, play, "Collecting"))
    finally:
        world.close()
    for reason in found.failed:
        print(f"left out: {printable(reason, limit=1000)}")
    print_lost(found.lost, len(items))
    if client:
        print(f"episodes {journal_path(out)}")
        print_bill(played, prompted)
    if not found.trajectories:
        raise UsageError(f"the expert solved none of {len(items)} items; {out} was not written")
    if ranks.is_first():
        write_jsonl(out, found.trajectories, replace=may_replace)
        if not client and not found.lost:
            drop_journal(out)
    steps = sum(len(t.steps) for t in found.trajectories)
    print(f"{out}: {len(found.trajectories)} of {len(items)} items, {steps} steps")


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(collect_demonstrations, "collect", args)
