"""The novice: the policy of round 0, which is the model after SFT on the demonstrations.

A model made from scratch is a unit of its own, `base`, so that prompting baselines can use it.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepagent.algorithms.sft import sft
from stepagent.chat.inference.server import server_at
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.manifest import Units
from stepagent.experiment.run import Run
from stepagent.experiment.run_folder import (
    BASE,
    CONFIG,
    DATA,
    NOVICE_DEV,
    tested_unit,
    too_long_key,
    unit_file,
)
from stepagent.experiment.run_json import RunError, first_change, read_config, shown
from stepagent.methods import METHODS, NOVICE
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.processes import ranks
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.scratch.pretraining import pretrain
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


def base_model(config: TrainConfig, run: Run) -> str | Path:
    """The model that SFT starts from: a folder or the id of one on the hub."""
    return config.model if isinstance(config.model, str) else run.unit_folder(BASE)


def model_name(model: str) -> str:
    """The id of a model on the hub, or the name of its folder without the path."""
    return Path(model).name if Path(model).is_dir() else model


def open_policy(config: TrainConfig, run: Run, unit: str) -> Policy:
    """The policy of a finished unit.

    An adapter records the path of its base model, which may have moved since: its weights are
    loaded onto the base of this run.
    """
    folder = run.unit_folder(unit)
    if not config.lora.rank:
        return Policy.load(folder, config.compute)
    policy = Policy.load(base_model(config, run), config.compute, config.lora, seed=config.seed)
    policy.restore(folder)
    if config.practise_with is not None:
        policy.sampler = server_at(config.practise_with)
    return policy


def make_novice(
    config: TrainConfig,
    run: Run,
    demonstrations: Sequence[Trajectory],
    cloned: Sequence[Trajectory],
) -> None:
    """Fine-tunes on `cloned`; a model from scratch is first made from all demonstrations."""
    if isinstance(config.model, TinyConfig) and not run.is_done(BASE):
        _make_base(config, config.model, run, demonstrations)
    if run.is_done(NOVICE):
        return
    with run.unit(NOVICE) as folder:
        policy = Policy.load(base_model(config, run), config.compute, config.lora, seed=config.seed)
        own = rendered(run, policy, cloned, "SFT")
        sft(policy, own, config.sft, seed=config.seed, log=_log(run, "train"))
        policy.save(folder)


def _make_base(
    config: TrainConfig, model: TinyConfig, run: Run, demonstrations: Sequence[Trajectory]
) -> None:
    with run.unit(BASE) as folder:
        if ranks.is_first():
            build_tiny_model(demonstrations, model, seed=config.seed, folder=folder)
        policy = Policy.load(ranks.from_first(folder), config.compute)
        own = [d.trajectory for d in rendered(run, policy, demonstrations, "pretraining")]
        pretrain(policy, own, config.pretrain, seed=config.seed, log=_log(run, "pretrain"))
        policy.save(folder)


UNITS = (DATA, BASE, NOVICE, NOVICE_DEV, tested_unit(NOVICE))
"""The units of a run that do not depend on the methods it compares."""

SETTINGS = (
    "task", "data", "model", "lora", "compute", "practise_with", "pretrain", "sft", "evaluation",
    "seed",
)  # fmt: skip
"""The settings that these units depend on."""


def check_novice(other: Path, settings: Mapping[str, Any]) -> None:
    """Raises `RunError` if the other run has no novice, a different one, or changed files."""
    if not (other / CONFIG).is_file():
        raise RunError(
            f"{shown(other)}: no run; expected a folder that stepagent train has written"
        )
    units, theirs = _units(other)
    if NOVICE not in units.names:
        raise RunError(f"{shown(other)}: has no novice yet; expected a run whose SFT is finished")
    if theirs.get("protocol") != settings["protocol"]:
        raise RunError(f"{shown(other)}: its task has another protocol")
    for name in SETTINGS:
        if first_change(theirs["config"].get(name), settings["config"].get(name), f"config.{name}"):
            raise RunError(f"{shown(other)}: its novice has other settings of --{name}")
    before, now = (known.get("inputs") or {} for known in (theirs, settings))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise RunError(f"{shown(other)}: its novice began with other inputs: {name}")
    units.check_rows()
    units.check_all(UNITS)


def take_novice(run: Run, other: Path) -> None:
    """Copies data and novice from another run that `check_novice` has passed."""
    units, theirs = _units(other)
    for name, facts in theirs["data"].items():
        if name not in METHODS:
            run.record_data(name, facts)
    run.record_data("novice", {"of": other.name})
    rows = units.check_rows().values()
    for unit in UNITS:
        if unit not in units.names or run.is_done(unit):
            continue
        with run.unit(unit) as folder:
            for name in units.manifests[unit].files:
                if (path := Path(name)).is_relative_to(inside := unit_file(unit, "")):
                    copy = folder / path.relative_to(inside)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(other / name, copy)
                else:
                    with run.write(name) as file, open(other / name, "rb") as source:
                        shutil.copyfileobj(source, file)
            for row in rows:
                if row["unit"] == unit:
                    run.log(**{k: v for k, v in row.items() if k not in ("unit", "seconds")})


def _units(other: Path) -> tuple[Units, dict[str, Any]]:
    config = read_config(other)
    if config is None:
        raise RunError(
            f"{shown(other)}: written by an earlier version of StepAgent, which kept no hashes; "
            "expected a run of this version"
        )
    return Units(other, config["units"]), config


def rendered(
    run: Run, policy: Policy, trajectories: Sequence[Trajectory], use: str
) -> list[RenderedTrajectory]:
    """Renders the trajectories that fit into the model's context; config.json lists the others."""
    found, too_long = policy.render_fitting(trajectories)
    if too_long:
        run.record_data(too_long_key(use), {"left_out": too_long, "of": len(trajectories)})
        logger.warning(
            "left out of %s: %d of %d trajectories, longer than the model's context of %d tokens",
            use, len(too_long), len(trajectories), policy.context,
        )  # fmt: skip
    return found


def _log(run: Run, phase: str) -> Callable[[Metrics], None]:
    return lambda metrics: run.log(stage=NOVICE, round=0, phase=phase, **metrics)
