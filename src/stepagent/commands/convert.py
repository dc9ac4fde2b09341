"""`stepagent convert`: converts a GGUF file to a Hugging Face model folder."""

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
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    overwrite: bool = False,
) -> None:
    """Converts a GGUF file to a Hugging Face model folder with trainable float32 weights.

    Reads FILE; writes the new folder OUT. Commands that take a policy accept a GGUF file directly
    and keep the converted folder in the user's cache.

    For example: stepagent convert SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2

    Args:
        file: The GGUF file, or any part of a split one. Transformers must support its architecture.
        out: New folder for the model.
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
