"""A whole run from Python: what `stepagent train` does, with its results as an object."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepagent.api.learning import check_apart
from stepagent.commands.inputs import model_input
from stepagent.experiment.config import SettingsError, TrainConfig
from stepagent.experiment.novice import model_name
from stepagent.experiment.own import OwnData, content_hash, split_by_content
from stepagent.experiment.pipeline import train as train_in
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run import Run, to_json
from stepagent.experiment.run_folder import (
    CHOSEN_FILE,
    REPORT,
    RESULTS_JSON,
    SUMMARY,
    round_unit,
    tested_unit,
    unit_file,
    unit_path,
)
from stepagent.experiment.run_json import read_json
from stepagent.learners.base import LearnerConfig
from stepagent.report.page import write_report
from stepagent.tasks.base import Task
from stepagent.types import Trajectory

HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a finished run found."""

    folder: Path
    """The run folder: metrics.jsonl, every round's policy in units/, report.html."""
    summary: str
    """A table of all methods with 95 % intervals, and in words which is better."""
    rows: tuple[dict[str, Any], ...]
    """One for each method and metric: `method`, `metric`, `mean`, `low`, `high`, `n`, ..., as in
    results.json. Scores are 0 to 100, success and agreement 0 to 1."""

    def mean(self, method: str, metric: str = "success") -> float | None:
        """The mean of a metric, such as "score"; None if it is not known.

        Raises KeyError if the run has no such method or metric.
        """
        for row in self.rows:
            if (row["method"], row["metric"]) == (method, metric):
                value: float | None = row["mean"]
                return value
        raise KeyError(f"no {metric!r} of {method!r} in {self.folder}")

    def policy_folder(self, method: str) -> Path:
        """The folder of the method's best policy, for `Policy.load`.

        "sft" is the novice, which is also the best policy of a method that never beat it.
        """
        chosen: int = read_json(self.folder / unit_file(tested_unit(method), CHOSEN_FILE))
        return self.folder / unit_path(round_unit(method, chosen))


def train(
    config: TrainConfig | str,
    out: str | Path,
    *,
    task: Task | None = None,
    demonstrations: Sequence[Trajectory] | None = None,
    held_out: Sequence[Trajectory] | None = None,
    learners: Mapping[str, LearnerConfig] | None = None,
    resume: bool = False,
) -> Results:
    """Trains an agent from novice to expert: SFT, rounds of every method, test, report.

    Give a task, demonstrations, or both. With a task the best round of each method is the one with
    the highest score on dev items, and all are compared on test items. Without one the best round
    is the one that agrees most often with the expert on held-out steps, and how often the agent
    would succeed stays unknown.

    Args:
        config: All settings, or the name of a recipe (`stepagent train --help` lists them).
        out: The run folder.
        task: The environment, such as a `GymTask`; by default that of the config, if it has one.
        demonstrations: The expert's trajectories; by default those of the task's expert.
        held_out: Other trajectories of the expert; by default a fifth of the demonstrations.
        learners: Methods of your own, by name: configs whose `learner(novice)` makes a `Learner`.
            They are compared with `config.methods`.
        resume: Continue the run in `out`, if there is one, to the same numbers.

    Returns:
        The results, read from the run folder.

    Raises:
        SettingsError: The recipe is unknown, or the settings contradict each other.
        RunError: `out` holds a run already and `resume` is off, or one with other settings.
        EnvironmentLost: The environments of all episodes were lost.
    """
    out, recipe = Path(out), config if isinstance(config, str) else "own"
    if isinstance(config, str):
        if config not in RECIPES:
            known = ", ".join(RECIPES)
            raise SettingsError(f"unknown recipe {config!r}; expected one of {known}")
        config = RECIPES[config]
    own = _own_data(demonstrations, held_out)
    with ExitStack() as stack:
        if task is not None:
            config = replace(config, task=None)
        elif config.task is not None and own is None:
            task = config.task.make_task()
            stack.callback(task.close)
        settings = _settings(recipe, config, task, own, learners or {})
        with Run(out, settings, resume=resume) as run:
            train_in(config, run, task, learners, own=own)
            write_report([out], out / REPORT)
    rows = json.loads((out / RESULTS_JSON).read_text(encoding="utf-8"))
    summary = (out / SUMMARY).read_text(encoding="utf-8")
    return Results(folder=out, summary=summary, rows=tuple(rows))


def _own_data(
    demonstrations: Sequence[Trajectory] | None, held_out: Sequence[Trajectory] | None
) -> OwnData | None:
    if demonstrations is None:
        if held_out is not None:
            raise SettingsError("train: held_out is given without demonstrations")
        return None
    if held_out is None:
        if len(demonstrations) < 2:
            raise SettingsError(
                f"train: {len(demonstrations)} demonstrations; expected at least 2, since a fifth "
                "is held out, or held_out=[...]"
            )
        own, other = split_by_content(demonstrations, HELD_OUT_SHARE)
    else:
        check_apart("train", demonstrations, held_out)
        own, other = list(demonstrations), list(held_out)
    return OwnData(demonstrations=tuple(own), held_out=tuple(other), left_out={}, longest_action=0)


def _settings(
    recipe: str,
    config: TrainConfig,
    task: Task | None,
    own: OwnData | None,
    learners: Mapping[str, LearnerConfig],
) -> dict[str, Any]:
    """What must be unchanged when the run is resumed; a model and data by their content."""
    settings = to_json(config)
    if settings["task"] is not None:
        settings["task"].pop("engine", None)  # how long an engine is waited for changes no number
    inputs = {}
    if isinstance(config.model, str):
        settings["model"], inputs["model"] = model_name(config.model), model_input(config.model)
    if own is not None:
        for name, used in (("demonstrations", own.demonstrations), ("held_out", own.held_out)):
            hashes = "\n".join(map(content_hash, used))
            inputs[name] = hashlib.sha256(hashes.encode()).hexdigest()
    for name, learner in learners.items():
        inputs[f"learner {name}"] = repr(learner)
    return {
        "recipe": recipe,
        "seed": config.seed,
        "protocol": to_json(task.facts()) if task else {},
        "config": settings,
        "inputs": inputs,
    }
