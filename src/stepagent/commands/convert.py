"""`stepagent convert`: a Hugging Face model folder from a GGUF file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.models import prepare
from stepagent.commands.outputs import check_folder
from stepagent.commands.parsing import run_command
from stepagent.files.atomic import atomic_folder
from stepagent.model.gguf import convert


def convert_file(
    file: tyro.conf.Positional[Path],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    overwrite: bool = False,
) -> None:
    """Writes the model of a GGUF file as a folder of float32 weights, which can be trained.

    Reads FILE; writes the new folder OUT. Commands that take a policy also take the file itself;
    they then keep the folder in the user's cache.

    For example: stepagent convert SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2

    Args:
        file: The GGUF file, of an architecture that transformers reads; any part of a split one.
        out: Folder for the model.
        overwrite: Replace OUT if it exists.
    """
    check_folder(out, inputs=[file], overwrite=overwrite)
    prepare()
    with atomic_folder(out, replace=overwrite) as folder:
        convert(file, folder)
    print(out)


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(convert_file, "convert", args)
