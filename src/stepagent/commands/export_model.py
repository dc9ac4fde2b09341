"""`stepagent export-model`: exports a policy or discriminator of a run for other tools."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.models import local_model, prepare
from stepagent.commands.outputs import check_folder
from stepagent.commands.parsing import UsageError, run_command
from stepagent.experiment.export import export_discriminator, export_policy
from stepagent.experiment.inputs import files_of
from stepagent.experiment.manifest import check_policy
from stepagent.experiment.run_folder import UNITS
from stepagent.learners.inverse import DISCRIMINATOR


def export_model(
    unit: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="UNIT")],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    merged: bool = False,
    discriminator: bool = False,
    overwrite: bool = False,
) -> None:
    """Exports a policy of a run as a Hugging Face folder with a model card.

    Reads UNIT, one finished part of a run; writes the new folder OUT, which opens with
    AutoModelForCausalLM, or with PeftModel if an adapter was trained. With --discriminator, exports
    that round's discriminator instead. It is a language model too: its log-probability of an action
    minus that of the policy at the start of the round is the logit from which the step reward is
    computed.

    For example: stepagent export-model runs/demo/units/implicit-round1 -o agent

    Args:
        unit: The unit's folder, such as runs/demo/units/implicit-round1.
        out: New folder for the model.
        merged: Merge a trained adapter into its base model and write the whole model.
        discriminator: Export the discriminator instead of the policy.
        overwrite: Replace OUT if it exists.
    """
    # A folder written next to the units would be taken for one.
    inputs = [unit.parent if unit.parent.name == UNITS else unit, *files_of(unit)]
    if discriminator:
        inputs += files_of(unit / DISCRIMINATOR)
    check_folder(out, inputs=inputs, overwrite=overwrite)
    if not unit.is_dir():
        raise UsageError(f"{unit}: no such folder; expected one like RUN/units/implicit-round1")
    check_policy(Path(local_model(str(unit))))
    if discriminator and not (unit / DISCRIMINATOR).is_dir():
        raise UsageError(f"{unit}: has no discriminator; only rounds of inverse reflection do")
    prepare()
    export = export_discriminator if discriminator else export_policy
    export(unit, out, merged=merged, replace=overwrite)
    print(out)


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(export_model, "export-model", args)
