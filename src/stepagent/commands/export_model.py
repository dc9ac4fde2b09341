"""`stepagent export-model`: a policy or a discriminator as a folder for others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.inputs import files_of
from stepagent.commands.models import local_model, prepare
from stepagent.commands.outputs import check_folder
from stepagent.commands.parsing import UsageError, run_command
from stepagent.experiment.export import export_discriminator, export_policy
from stepagent.experiment.manifest import check_policy


def export_model(
    unit: tyro.conf.Positional[Path],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    merged: bool = False,
    discriminator: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a model of a run as a Hugging Face folder with a model card.

    Reads UNIT, the folder of a policy in a run folder; writes the new folder OUT, for
    AutoModelForCausalLM, or PeftModel if an adapter was trained. With --discriminator it is the
    discriminator of that round, a language model too: its log-probability of an action minus that
    of the policy the round began with is the logit, from which the step reward is made.

    For example: stepagent export-model runs/demo/units/implicit-round1 -o agent

    Args:
        unit: For example runs/demo/units/implicit-round1.
        out: Folder for the model.
        merged: Write a whole model where an adapter was trained.
        discriminator: The discriminator instead of the policy.
        overwrite: Replace OUT if it exists.
    """
    # Beside a unit it would count as one.
    inputs = [unit.parent if unit.parent.name == "units" else unit, *files_of(unit)]
    if discriminator:
        inputs += files_of(unit / "discriminator")
    check_folder(out, inputs=inputs, overwrite=overwrite)
    if not unit.is_dir():
        raise UsageError(f"{unit}: no such folder; expected one such as RUN/units/implicit-round1")
    check_policy(Path(local_model(str(unit))))
    if discriminator and not (unit / "discriminator").is_dir():
        raise UsageError(f"{unit}: no discriminator; rounds of inverse reflection have one")
    prepare()
    export = export_discriminator if discriminator else export_policy
    export(unit, out, merged=merged, replace=overwrite)
    print(out)


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(export_model, "export-model", args)
