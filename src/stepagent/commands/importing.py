"""`stepagent import`: trajectories from a file in another format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import UsageError, run_command, unknown
from stepagent.formats.files import READERS, read_foreign
from stepagent.trajectories import write_jsonl


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

    Reads FILE: JSON lines, a list of objects or one object, also compressed (.gz). Writes OUT, one
    trajectory per line of JSON. docs/formats.md says what becomes what, and what is lost.

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
    write_jsonl(out, found.trajectories)
    for reason, numbers in found.rejected.items():
        listed = ", ".join(map(str, numbers))
        print(f"left out: {len(numbers)} x {reason} ({found.places} {listed})")
    num_rejected = sum(map(len, found.rejected.values()))
    num_records = num_rejected + len(found.trajectories)
    if num_rejected:
        print(f"left out: {num_rejected} of {num_records} records in all")
    steps = [step for trajectory in found.trajectories for step in trajectory.steps]
    print(
        f"{out}: {len(found.trajectories)} of {num_records} records ({found.format}), "
        f"{len(steps)} steps, {sum(bool(step.thought) for step in steps)} with a thought; "
        f"{sum(t.score is not None for t in found.trajectories)} trajectories with a score, "
        f"{sum(bool(t.tools) for t in found.trajectories)} with tools"
    )


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(import_trajectories, "import", args)
