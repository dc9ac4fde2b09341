"""`stepagent train`: a whole run, on demonstrations of one's own or by a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.launching import HELP as LAUNCHER_HELP
from stepagent.commands.models import open_task, prepare
from stepagent.commands.parsing import CONFIG, UsageError
from stepagent.commands.train_own import OWN, train_own
from stepagent.commands.whole_run import chosen_model, inputs_of, run_training
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.saved_settings import settings_of
from stepagent.scratch.small_model import TinyConfig
from stepagent.tasks.own import EnvConfig

HELP = f"""usage: stepagent train RECIPE --out RUN [OPTIONS]

Trains an agent from novice to expert: fine-tunes a model on an expert's trajectories (the novice),
improves it by rounds of inspection and reflection, and says which method did best.

RECIPE says what to train on, and with which settings:

  own                your own agent: your demonstrations, your model, your environment if you have
                     one; settings are chosen from the size of the model and of the data
                       stepagent train own --demonstrations FILE --model MODEL --out RUN
  a recipe's name    one of the tasks that come with StepAgent
                       stepagent train scienceworld-demo --out RUN
  a file             settings that are already there: config.json of an earlier run, or a
                     TrainConfig in a Python file
                       stepagent train RUN/config.json --seed 1 --out RUN-1
                       stepagent train settings.py:MINE --out RUN

Recipes: {", ".join(RECIPES)}.

For example: stepagent train own --demonstrations mine.jsonl --model models/mine --out runs/mine

Reads the files and folders that are named; writes the run folder RUN. Any setting can be
overridden: stepagent train own --help, or stepagent train RECIPE --help, lists all of them. A run
that was stopped continues with --resume and ends with the same numbers.

{LAUNCHER_HELP}"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains an agent from novice to expert by a recipe.

    Reads MODEL if it is given. Collects expert trajectories, fine-tunes the novice on them (SFT),
    improves it by rounds of inspection and reflection, and tests the best round of each method.
    Writes the run folder OUT: config.json, demonstrations, metrics, every round's policy (units/),
    episodes, results.json, summary.md and report.html. A run that was stopped continues with
    --resume and ends with the same numbers.

    For example: stepagent train scienceworld-demo --out runs/demo --seed 1 --sft.epochs 20
    """

    out: Path
    """The run folder."""
    model: str | None = None
    """The model to start from, in place of the recipe's: a Hugging Face folder, a GGUF file, the id
    of one on the hub, or scratch for a small one made from the demonstrations."""
    resume: bool = False
    """Continue the run in OUT, if there is one; finished parts are kept."""
    storage: str | None = None
    """Where a copy of the run folder is kept: a folder, or a URL that fsspec opens. With --resume,
    machines that lack finished units bring them from there."""
    novice: Path | None = None
    """A run folder whose data and novice are reused; only the learners may have other settings."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe's settings."""


def main(args: Sequence[str]) -> None:
    """The command."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    recipe, *options = args
    if recipe == OWN:
        train_own(options, OWN)
        return
    name, config, folder = settings_of(recipe, known=(OWN, *RECIPES))
    if config.task is None or isinstance(config.task, EnvConfig):
        train_own(options, name, config)
        return
    # A model is always an option of its own, beside the size of one from scratch.
    tiny = config.model if isinstance(config.model, TinyConfig) else TinyConfig()
    found = tyro.cli(
        Arguments,
        prog=f"stepagent train {recipe}",
        args=options,
        default=Arguments(config=replace(config, model=tiny), out=tyro.MISSING),
        config=CONFIG,
    )
    if folder and found.model is None:
        raise UsageError(f"{recipe}: its model was the folder {folder}; name it with --model")
    prepare()
    given = found.model or (config.model if isinstance(config.model, str) else None)
    config = replace(found.config, model=chosen_model(given, found.config, tiny))
    assert config.task is not None
    assert not isinstance(config.task, EnvConfig)
    task = open_task(config.task)
    try:
        run_training(
            name,
            config,
            found.out,
            inputs_of(config.model),
            task=task,
            novice=found.novice,
            resume=found.resume,
            storage=found.storage,
        )
    finally:
        task.close()
