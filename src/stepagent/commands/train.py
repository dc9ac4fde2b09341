"""`stepagent train`: a whole run from a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any

import tyro

from stepagent.commands.inputs import model_input
from stepagent.commands.models import local_model, open_task, prepare
from stepagent.commands.outputs import check_no_input
from stepagent.commands.parsing import CONFIG, UsageError, unknown
from stepagent.commands.report import check_page
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.manifest import check_policy
from stepagent.experiment.novice import check_novice, model_name, take_novice
from stepagent.experiment.pipeline import train
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run import Run, to_json
from stepagent.report.page import write_report
from stepagent.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains an agent from novice to expert: a whole run of a recipe.

    Collects expert trajectories, trains the novice on them (SFT), improves it by rounds of
    inspection and reflection, and tests the best round of each method. Reads nothing; writes the
    run folder OUT: config.json, demonstrations, metrics, every round's policy (units/), episodes,
    results.json, summary.md and report.html. A run that was stopped goes on with --resume, to the
    same numbers.

    For example: stepagent train scienceworld-demo --out runs/demo --seed 1 --sft.epochs 20
    """

    out: Path
    """The run folder."""
    resume: bool = False
    """Go on with the run in OUT, if there is one; finished parts are kept."""
    novice: Path | None = None
    """A run folder whose data and novice are taken over; only the learners may have other
    settings."""
    policy: str | None = None
    """The model to begin with: a Hugging Face folder, a GGUF file, or the id of one on the hub."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe's settings."""


def main(args: Sequence[str]) -> None:
    """The command."""
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: stepagent train RECIPE --out RUN [OPTIONS]\n\n{getdoc(Arguments)}\n")
        print(f"Recipes: {', '.join(RECIPES)}. Options: stepagent train RECIPE --help")
        return
    recipe, *options = args
    if recipe not in RECIPES:
        raise UsageError(unknown("recipe", recipe, RECIPES))
    default = Arguments(config=RECIPES[recipe], out=tyro.MISSING)
    found = tyro.cli(
        Arguments, prog=f"stepagent train {recipe}", args=options, default=default, config=CONFIG
    )
    config = found.config
    prepare()
    if found.policy is not None:
        config = replace(config, model=local_model(found.policy))
    if config.lora.rank and not isinstance(config.model, str):
        raise UsageError("--lora.rank: a model made from scratch has nothing to adapt")
    task = open_task(config.task)
    page = found.out / "report.html"
    given = [Path(config.model)] if isinstance(config.model, str) else []
    for model in given:
        check_policy(model)
    check_no_input(found.out, [*given, *([found.novice] if found.novice else [])])
    try:
        settings = _settings(recipe, config, task)
        if found.novice is not None:
            check_novice(found.novice, settings)
        if found.out.is_dir():
            check_page([found.out], page)
        with Run(found.out, settings, resume=found.resume) as run:
            if found.novice is not None:
                take_novice(run, found.novice)
            train(config, run, task)
            write_report([found.out], page)
    finally:
        task.close()
    print()
    print((found.out / "summary.md").read_text(encoding="utf-8"))
    print(f"Report: {page}")


def _settings(recipe: str, config: TrainConfig, task: Task) -> dict[str, Any]:
    """What has to be the same when the run goes on; a model by its content, not its place."""
    own = to_json(config)
    # How long an engine is waited for changes no number, and may change when a run is resumed.
    own["task"].pop("engine", None)
    inputs = {}
    if isinstance(config.model, str):
        own["model"], inputs["model"] = model_name(config.model), model_input(config.model)
    return {
        "recipe": recipe,
        "seed": config.seed,
        "protocol": to_json(task.facts()),
        "config": own,
        "inputs": inputs,
    }
