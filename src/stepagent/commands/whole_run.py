"""What all forms of `stepagent train` do: check the inputs, run, write the report."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from stepagent.commands.models import local_model
from stepagent.commands.outputs import check_no_input
from stepagent.commands.parsing import UsageError
from stepagent.commands.report import check_page
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.dev_and_test import best_unit
from stepagent.experiment.follower import open_run
from stepagent.experiment.inputs import model_input, run_settings
from stepagent.experiment.manifest import check_policy
from stepagent.experiment.novice import check_novice, take_novice
from stepagent.experiment.own import OwnData
from stepagent.experiment.pipeline import train
from stepagent.experiment.run_folder import HELD_OUT, REPORT, SUMMARY
from stepagent.files.atomic import file_hash
from stepagent.processes import ranks
from stepagent.report.page import write_report
from stepagent.scratch.small_model import TinyConfig
from stepagent.tasks.base import Task

SCRATCH = "scratch"
"""Names a small model that is made from the demonstrations."""


def chosen_model(given: str | None, config: TrainConfig, default: TinyConfig) -> TinyConfig | str:
    """The requested model; raises `UsageError` if it is no model or other options contradict it."""
    assert isinstance(config.model, TinyConfig)
    if given is None or given == SCRATCH:
        if config.lora.rank:
            raise UsageError("--lora.rank: a model made from scratch has nothing to adapt")
        return config.model
    model = local_model(given)
    check_policy(Path(model))
    if config.model != default:
        raise UsageError(
            f"--model.*: only for a model made from scratch; expected --model {SCRATCH}"
        )
    return model


def inputs_of(model: TinyConfig | str, **files: Path | None) -> dict[str, str]:
    """What a run starts from, by content: a model, and files by what they are for."""
    found = {"model": model_input(model)} if isinstance(model, str) else {}
    return found | {name: file_hash(file) for name, file in files.items() if file}


def run_training(
    recipe: str,
    config: TrainConfig,
    out: Path,
    inputs: Mapping[str, str],
    *,
    task: Task | None,
    novice: Path | None,
    resume: bool,
    storage: str | None,
    own: OwnData | None = None,
) -> None:
    """The whole run in `out`, its report, and its summary on standard output."""
    page = out / REPORT
    given = [Path(config.model)] if isinstance(config.model, str) else []
    check_no_input(out, [*given, *([novice] if novice else [])])
    settings = run_settings(recipe, config, task, inputs)
    if novice is not None:
        check_novice(novice, settings)
    if out.is_dir():
        check_page([out], page)
    with open_run(out, settings, resume=resume, storage=storage) as run:
        if novice is not None:
            take_novice(run, novice)
        train(config, run, task, own=own)
        if ranks.is_first():
            write_report([out], page)
        policy = run.unit_folder(best_unit(run, config.methods))
    print()
    print((out / SUMMARY).read_text(encoding="utf-8"))
    print(f"Report: {page}")
    print(f"Policy: {policy}")
    print(
        f"Try it: stepagent inspect --policy {quote(str(policy))} --demonstrations "
        f"{quote(str(out / HELD_OUT))} --out actions.jsonl"
    )
