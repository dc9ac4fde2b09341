"""A whole run from Python: what `stepagent train` does, with its results as an object."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from stepagent.api.learning import check_apart, check_ids
from stepagent.commands.models import renderer_of
from stepagent.experiment.config import SettingsError, TrainConfig
from stepagent.experiment.dev_and_test import best_unit
from stepagent.experiment.inputs import model_input, run_settings
from stepagent.experiment.own import OwnData, content_hash, own_data
from stepagent.experiment.own_environment import check_items, in_items
from stepagent.experiment.pipeline import train as train_in
from stepagent.experiment.run import Run
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
from stepagent.experiment.saved_settings import Saved, settings_of
from stepagent.learners.base import LearnerConfig
from stepagent.methods import METHODS
from stepagent.report.page import write_report
from stepagent.tasks.base import Task
from stepagent.tasks.environment_check import check_environment
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


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
    policy: Path
    """The folder of the policy that did best on dev, or agreed most with the expert if there was no
    environment; for `Policy.load` and `stepagent export-model`."""

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

        "sft" is the novice, which is also the best policy of a method that never beat it. Raises
        `RunError` if the run has no such method.
        """
        chosen: int = read_json(self.folder / unit_file(tested_unit(method), CHOSEN_FILE))
        return self.folder / unit_path(round_unit(method, chosen))


def load_settings(source: str | Path, *, model: str | Path | None = None) -> TrainConfig:
    """Loads the settings of a whole run, to be changed with `dataclasses.replace`.

    Args:
        source: What `stepagent train` takes: the name of a recipe (`stepagent train --help` lists
            them), RUN/config.json of an earlier run, or FILE.py:NAME, a `TrainConfig` in a file.
        model: The model to start from, in place of the settings' own: a folder or an id on the hub.
            It is needed if an earlier run started from a folder, since config.json does not say
            where that was.

    Returns:
        The settings.

    Raises:
        SettingsError: There is no such recipe or file, it has no usable settings, or the model has
            to be named.
        RunError: config.json was changed.

    Example:
        >>> import dataclasses, stepagent
        >>> config = stepagent.load_settings("scienceworld-demo")
        >>> dataclasses.replace(config, seed=1, methods=("implicit",)).seed
        1
    """
    return _loaded(source, model).config


def train(
    config: TrainConfig | str | Path,
    out: str | Path,
    *,
    task: Task | None = None,
    demonstrations: Sequence[Trajectory] | None = None,
    held_out: Sequence[Trajectory] | None = None,
    learners: Mapping[str, LearnerConfig] | None = None,
    resume: bool = False,
) -> Results:
    """Trains an agent from novice to expert: SFT, rounds of every method, test, report.

    Needs an environment, demonstrations, or both. With an environment the best round of each method
    is the one with the highest score on dev items, and all are compared on test items. Without one
    the best round is the one that agrees most often with the expert on held-out steps, and how
    often the agent would succeed stays unknown.

    Args:
        config: All settings, or what `load_settings` loads them from.
        out: The run folder.
        task: The environment, such as a `GymTask`, for a config without one; by default that of the
            config.
        demonstrations: The expert's trajectories, with unique ids; by default those of the
            environment's expert. Those that are marked as failed, occur twice or are longer than
            the model's context are left out, with a warning. In an environment, those whose id is
            an item, or whose metadata has its seed, can take detours.
        held_out: Other trajectories of the expert; by default a fifth of the demonstrations. In an
            environment, agreement with the expert is measured on them.
        learners: Methods of your own, by name: dataclasses whose `learner(novice)` makes a
            `Learner`. They are compared with `config.methods`.
        resume: Continue the run in `out`, if there is one, to the same numbers.

    Returns:
        The results, read from the run folder.

    Raises:
        SettingsError: The settings cannot be loaded, contradict each other or what is given, or
            `learners` cannot be used.
        DemonstrationsError: Ids occur twice, or a trajectory is in both lists.
        OwnDataError: Nothing is left to train on or to hold out.
        RunError: `out` holds a run already and `resume` is off, or one with other settings.
        EnvironmentFailed: The environment does not do what it has to.
        EnvironmentLost: The environments of all episodes were lost.

    Example:
        `config` has a model from scratch and implicit reflection as its only method.

        >>> import stepagent
        >>> results = stepagent.train(config, out, demonstrations=demonstrations, held_out=held_out)
        >>> 0 <= results.mean("implicit", "agreement") <= 1
        True
        >>> policy = stepagent.Policy.load(results.policy)
    """
    out, recipe = Path(out), "own"
    if not isinstance(config, TrainConfig):
        recipe, config, _ = _loaded(config)
    learners = _checked(learners or {})
    with ExitStack() as stack:
        if task is None and config.task is not None:
            task = config.task.make_task()
            stack.callback(task.close)
        elif task is not None and config.task is not None:
            raise SettingsError(
                f"train: task={task.name} is given, but config.task is a "
                f"{type(config.task).__name__}; expected one of them, the other None"
            )
        own = _own_data(config, task, demonstrations, held_out)
        settings = run_settings(recipe, config, task, _inputs(config, own, learners))
        with Run(out, settings, resume=resume) as run:
            train_in(config, run, task, learners, own=own)
            write_report([out], out / REPORT)
            policy = run.unit_folder(best_unit(run, [*config.methods, *learners]))
    rows = json.loads((out / RESULTS_JSON).read_text(encoding="utf-8"))
    summary = (out / SUMMARY).read_text(encoding="utf-8")
    return Results(folder=out, summary=summary, rows=tuple(rows), policy=policy)


def _loaded(source: str | Path, model: str | Path | None = None) -> Saved:
    found = settings_of(str(source))
    if model is not None:
        return found._replace(config=replace(found.config, model=str(model)))
    if found.folder is not None:
        raise SettingsError(
            f"{source}: its model was the folder {found.folder}; load it with "
            "load_settings(..., model=...)"
        )
    return found


def _checked(learners: Mapping[str, LearnerConfig]) -> Mapping[str, LearnerConfig]:
    """The learners, if they can be called so; raises `SettingsError` if not."""
    for name, learner in learners.items():
        if name in METHODS:
            raise SettingsError(f"learners: {name!r} is a method of StepAgent; choose another name")
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name)):
            raise SettingsError(
                f"learners: {name!r} names files; expected letters, digits, '_' and '-' only"
            )
        makes = callable(getattr(learner, "learner", None))
        if not makes or not is_dataclass(learner) or isinstance(learner, type):
            found = "the class" if isinstance(learner, type) else "an instance of"
            kind = learner if isinstance(learner, type) else type(learner)
            raise SettingsError(
                f"learners: {name!r} is {found} {kind.__name__}; expected an instance of a "
                "dataclass with a method learner(novice)"
            )
    return learners


def _own_data(
    config: TrainConfig,
    task: Task | None,
    demonstrations: Sequence[Trajectory] | None,
    held_out: Sequence[Trajectory] | None,
) -> OwnData | None:
    """The user's own demonstrations, if there are any, cleaned and split."""
    if demonstrations is None:
        if held_out is not None:
            raise SettingsError("train: held_out is given without demonstrations; expected both")
        if task is None:
            raise SettingsError(
                "train: expected an environment (task=... or config.task), demonstrations=..., or "
                "both; found neither"
            )
        return None
    if task is None:
        config.check_without_environment()
    given = {"demonstrations": demonstrations}
    if held_out is not None:
        given["held_out"] = held_out
        check_apart("train", demonstrations, held_out)
    for name, trajectories in given.items():
        check_ids("train", trajectories, name)
    own = own_data(given, lambda trajectories: renderer_of(config.model, trajectories))
    for reason, number in own.left_out.items():
        logger.warning("train: %d trajectories left out: %s", number, reason)
    if task is None:
        return own
    own = in_items(own, task)
    check_items(config, own, task)
    for warning in check_environment(task, own.demonstrations):
        logger.warning("train: %s", warning)
    return own


def _inputs(
    config: TrainConfig, own: OwnData | None, learners: Mapping[str, LearnerConfig]
) -> dict[str, str]:
    """What the run starts from, by content."""
    found = {f"learner {name}": repr(learner) for name, learner in learners.items()}
    if isinstance(config.model, str):
        found["model"] = model_input(config.model)
    if own is not None:
        for name, used in (("demonstrations", own.demonstrations), ("held_out", own.held_out)):
            hashes = "\n".join(map(content_hash, used))
            found[name] = hashlib.sha256(hashes.encode()).hexdigest()
    return found
