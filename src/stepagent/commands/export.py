"""`stepagent export`: converts trajectories to another format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import UsageError, run_command, unknown
from stepagent.console.printable import printable
from stepagent.formats.import_export import WRITERS, write_foreign
from stepagent.trajectories import read_trajectories


def export_trajectories(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    format: str,
    overwrite: bool = False,
) -> None:
    """Converts trajectories to a format that another project reads.

    Reads FILE; writes OUT, one record per line of JSON. docs/formats.md describes how each field is
    converted and what is lost.

    For example: stepagent export demonstrations.jsonl -o sft.jsonl --format messages

    Args:
        file: The trajectories, one per line of JSON.
        out: File to write; a name that ends in .gz is compressed.
        format: The format to write: messages (TRL, Hugging Face), openai, eto, agentgym or atif.
        overwrite: Replace OUT if it exists.
    """
    if format not in WRITERS:
        raise UsageError(unknown("format", format, WRITERS))
    check_file(out, inputs=[file], overwrite=overwrite)
    trajectories = read_trajectories(file).trajectories
    write_foreign(out, trajectories, format, replace=overwrite)
    steps = sum(len(trajectory.steps) for trajectory in trajectories)
    print(
        f"{printable(str(out), limit=4096)}: {len(trajectories)} records ({format}), {steps} steps"
    )


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(export_trajectories, "export", args)
