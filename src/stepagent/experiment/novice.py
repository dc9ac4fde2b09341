"""The novice of a run: a model, given or made from scratch, after SFT.

A model made from scratch is a unit of its own, `base`, so that it can be prompted as well.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepagent.algorithms.sft import sft
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.manifest import RunError, Units, read_config, shown
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
from stepagent.methods import METHODS, NOVICE
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.scratch.pretraining import pretrain
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


def base_model(config: TrainConfig, run: Run) -> str | Path:
    """Where the model is that SFT begins with."""
    return config.model if isinstance(config.model, str) else run.unit_folder(BASE)


def model_name(model: str) -> str:
    """The id of a model on the hub, or the name of its folder, wherever that is."""
    return Path(model).name if Path(model).is_dir() else model


def open_policy(config: TrainConfig, run: Run, unit: str) -> Policy:
    """The policy of a finished unit.

    An adapter names the place of its base, which may be another one by now: its weights are put on
    the base where that is today.
    """
    folder = run.unit_folder(unit)
    if not config.lora.rank:
        return Policy.load(folder, config.compute)
    policy = Policy.load(base_model(config, run), config.compute, config.lora, seed=config.seed)
    policy.restore(folder)
    return policy


def make_novice(
    config: TrainConfig,
    run: Run,
    demonstrations: Sequence[Trajectory],
    cloned: Sequence[Trajectory],
) -> None:
    """SFT on what is to be cloned; if no model is given, one is made of all demonstrations."""
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
        build_tiny_model(demonstrations, model, seed=config.seed, folder=folder)
        policy = Policy.load(folder, config.compute)
        own = [d.trajectory for d in rendered(run, policy, demonstrations, "pretraining")]
        pretrain(policy, own, config.pretrain, seed=config.seed, log=_log(run, "pretrain"))
        policy.save(folder)


UNITS = (DATA, BASE, NOVICE, NOVICE_DEV, tested_unit(NOVICE))
"""The units of a run that do not depend on its learners."""

SETTINGS = ("task", "data", "model", "lora", "compute", "pretrain", "sft", "evaluation", "seed")
"""What they depend on."""


def check_novice(other: Path, settings: Mapping[str, Any]) -> None:
    """Raises `RunError` if another run has no novice, or one that these settings do not give.

    Also if what is to be taken over is not as the other run wrote it.
    """
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
        if theirs["config"].get(name) != settings["config"][name]:
            raise RunError(f"{shown(other)}: its novice has other settings of --{name}")
    if theirs.get("inputs") != settings.get("inputs"):
        raise RunError(f"{shown(other)}: its novice began with another model")
    units.check_rows()
    units.check_all(UNITS)


def take_novice(run: Run, other: Path) -> None:
    """Takes data and novice over from another run, so that only the learners are left to do.

    `check_novice` comes first.
    """
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
            f"{shown(other)}: an earlier version of StepAgent wrote it and kept no hashes of its "
            "files; expected a run of this version"
        )
    return Units(other, config["units"]), config


def rendered(
    run: Run, policy: Policy, trajectories: Sequence[Trajectory], use: str
) -> list[RenderedTrajectory]:
    """Those that fit into the model's context; the others are counted in config.json."""
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
