"""`stepagent import`: converts a file in another format to trajectories."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import UsageError, run_command, unknown
from stepagent.console.printable import printable, shown
from stepagent.formats.import_export import READERS, WRITERS, Imported, read_foreign
from stepagent.rendering.actions import call_of
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory

MAX_LISTED = 10
"""Places listed for each reason, and names of metadata fields."""
MAX_READ = 200
"""Characters shown of an instruction and an observation."""
MAX_TRAINED = 2000
"""Characters shown of a thought and an action."""


def import_trajectories(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    format: Annotated[str | None, tyro.conf.arg(metavar="|".join(READERS))] = None,
    task: str | None = None,
    skip_invalid: bool = False,
    overwrite: bool = False,
) -> None:
    """Converts agent data of another project to trajectories, StepAgent's own format.

    Reads FILE; writes OUT, one trajectory per line of JSON, and prints what was understood with one
    step as an example. docs/formats.md describes how each field is converted and what is lost.

    For example: stepagent import webshop_sft.json -o demonstrations.jsonl

    Args:
        file: JSON lines, a JSON list or one JSON object (also as .gz), or Parquet.
        out: File for the trajectories; a name that ends in .gz is compressed.
        format: Format of FILE; trajectories is our own. By default it is detected from the first
            record.
        task: Task name for records that have none; by default the file's name.
        skip_invalid: Leave out unusable records and list them by reason, instead of stopping at the
            first.
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
    """Lines that describe the import: what was left out or changed, counts, and an example step."""
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
    # The readers' own notes on how they split turns, which an export needs.
    others = {key for t in found.trajectories for key in t.metadata} - WRITERS.keys()
    if others:
        named = ", ".join(printable(key) for key in sorted(others)[:MAX_LISTED])
        more = f" and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
        yield f"kept as metadata, not used in training: {named}{more}"
    yield from _example(found.trajectories)


def _example(trajectories: Sequence[Trajectory]) -> Iterator[str]:
    """Shows the first step with a thought, or else the first step: what is read and trained."""
    places = [(t, index) for t in trajectories for index in range(len(t.steps))]
    trajectory, index = next((p for p in places if p[0].steps[p[1]].thought), places[0])
    step = trajectory.steps[index]
    yield f"example: step {index + 1} of {len(trajectory.steps)} of {shown(trajectory.id)}"
    yield f"  read     instruction  {printable(trajectory.instruction, MAX_READ)}"
    yield f"  read     observation  {printable(step.observation, MAX_READ)}"
    yield f"  trained  thought      {printable(step.thought, MAX_TRAINED)}"
    yield f"  trained  action       {printable(step.action, MAX_TRAINED)}"


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(import_trajectories, "import", args)
