"""`stepagent import`: trajectories from a file in another format."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.actions import call_of
from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import UsageError, run_command, unknown
from stepagent.console.printable import printable, shown
from stepagent.formats.import_export import READERS, Imported, read_foreign
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory

MAX_LISTED = 10
"""Places of one reason that are listed."""
MAX_READ = 200
"""Characters of an instruction and an observation that are shown."""
MAX_TRAINED = 2000
"""Characters of a thought and an action that are shown."""


def import_trajectories(
    file: tyro.conf.Positional[Path],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    format: str | None = None,
    task: str | None = None,
    skip_invalid: bool = False,
    overwrite: bool = False,
) -> None:
    """Turns the records of another project into trajectories.

    Reads FILE: JSON lines, a list of objects or one object, also compressed (.gz), or Parquet.
    Writes OUT, one trajectory per line of JSON, and says what it understood. docs/formats.md says
    what becomes what, and what is lost.

    For example: stepagent import webshop_sft.json -o demonstrations.jsonl

    Args:
        file: The file to import.
        out: The trajectories; a name that ends in .gz is compressed.
        format: messages (TRL, Hugging Face), openai, eto, agentgym, atif, webshop, knowagent or
            trajectories, our own; without it the fields of the first record tell.
        task: Task of records that name none; without it the file's name.
        skip_invalid: Leave out records that cannot be used, and list them by reason.
        overwrite: Replace OUT if it exists.
    """
    if format is not None and format not in READERS:
        raise UsageError(unknown("format", format, READERS))
    check_file(out, inputs=[file], overwrite=overwrite)
    found = read_foreign(file, format=format, task=task, skip_invalid=skip_invalid)
    write_jsonl(out, found.trajectories, replace=overwrite)
    for line in summary(found, out):
        print(line)


def summary(found: Imported, out: Path) -> Iterator[str]:
    """What the import made of the file, line by line, and one step as it will be trained."""
    for reason, numbers in found.rejected.items():
        listed = ", ".join(map(str, numbers[:MAX_LISTED]))
        more = f" and {len(numbers) - MAX_LISTED} more" if len(numbers) > MAX_LISTED else ""
        yield f"left out: {len(numbers)} x {reason} ({found.places} {listed}{more})"
    num_rejected = sum(map(len, found.rejected.values()))
    num_records = num_rejected + len(found.trajectories)
    if num_rejected:
        yield f"left out: {num_rejected} of {num_records} records in all"
    for what, changes in (("dropped", found.notes.dropped), ("renamed", found.notes.renamed)):
        for change, number in sorted(changes.items()):
            if number:
                yield f"{what}: {change} ({number} x)"
    steps = [step for trajectory in found.trajectories for step in trajectory.steps]
    name = printable(str(out), limit=4096)
    yield f"{name}: {len(found.trajectories)} of {num_records} records ({found.format})"
    for number, what in (
        (len(found.trajectories), "trajectories"),
        (len(steps), "steps"),
        (sum(bool(step.thought) for step in steps), "thoughts"),
        (sum(call_of(step.action) is not None for step in steps), "tool calls"),
        (len({str(tool) for t in found.trajectories for tool in t.tools}), "tools"),
        (found.notes.num_systems, "system messages that begin an instruction"),
        (sum(t.score is not None for t in found.trajectories), "scores"),
    ):
        yield f"{number:>8} {what}"
    styles = {"messages", "openai", "eto", "agentgym", "atif"}  # how their turns were cut
    others = {key for t in found.trajectories for key in t.metadata} - styles
    if others:
        named = ", ".join(printable(key) for key in sorted(others)[:MAX_LISTED])
        more = f" and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
        yield f"neither read nor trained, kept in the metadata: {named}{more}"
    yield from _example(found.trajectories)


def _example(trajectories: Sequence[Trajectory]) -> Iterator[str]:
    """The first step with a thought, or the first of all: what is read, and what is learnt."""
    places = [(t, index) for t in trajectories for index in range(len(t.steps))]
    trajectory, index = next((p for p in places if p[0].steps[p[1]].thought), places[0])
    step = trajectory.steps[index]
    yield f"for example, step {index + 1} of {len(trajectory.steps)} of {shown(trajectory.id)}:"
    yield f"  read     instruction  {printable(trajectory.instruction, MAX_READ)}"
    yield f"  read     observation  {printable(step.observation, MAX_READ)}"
    yield f"  trained  thought      {printable(step.thought, MAX_TRAINED)}"
    yield f"  trained  action       {printable(step.action, MAX_TRAINED)}"


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(import_trajectories, "import", args)
