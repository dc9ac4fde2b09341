"""`stepagent.train`: a whole run from Python, on data, environments and methods of the user's."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import stepagent
from fakes import WORLD, demonstrations
from stepagent.experiment.config import SettingsError
from stepagent.experiment.manifest import read_config
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run import RunError
from stepagent.learners.base import Log, Stateless
from stepagent.tasks.adapters.gymnasium import GymTask
from test_api import RUN

EXPERT = list(demonstrations()[:6])
HELD_OUT = list(demonstrations("dev")[:3])
IN_WORLD = replace(
    RUN, data=stepagent.DataConfig(sft=2, reflection=3, shared=2, dev=2, test=2), methods=()
)


@dataclass(frozen=True, kw_only=True)
class IdleConfig:
    """A method that learns nothing."""

    strength: int = 1

    def learner(self, novice: stepagent.Policy) -> "Idle":
        return Idle()


class Idle(Stateless):
    def learn(
        self, policy: stepagent.Policy, lesson: stepagent.Lesson, *, seed: int, log: Log
    ) -> list[Tensor] | None:
        return None


def data_of(run: Path) -> dict[str, Any]:
    """What config.json says of the data of a run."""
    config = read_config(run)
    assert config is not None
    found: dict[str, Any] = config["data"]
    return found


def ids(run: Path, file: str) -> list[str]:
    return [t.id for t in stepagent.read_trajectories(run / file)]


DEMONSTRATIONS, DEV = "demonstrations.jsonl", "practice/demonstrations-dev.jsonl"


def test_a_run_on_demonstrations_uses_them_in_order_and_is_resumed_to_the_same_numbers(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    made = stepagent.train(RUN, out, demonstrations=EXPERT, held_out=HELD_OUT)
    assert ids(out, DEMONSTRATIONS) == [t.id for t in EXPERT]
    assert ids(out, DEV) == [t.id for t in HELD_OUT]
    assert {row["split"] for row in made.rows} == {"held-out"}
    assert made.policy in {made.policy_folder("sft"), made.policy_folder("implicit")}
    assert stepagent.Policy.load(made.policy).context == 256
    with pytest.raises(KeyError, match="no 'success' of 'implicit'"):
        made.mean("implicit")

    with pytest.raises(RunError, match="holds a run already"):
        stepagent.train(RUN, out, demonstrations=EXPERT, held_out=HELD_OUT)
    # A kill after the novice: what came later is made again.
    metrics = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "results.json").unlink()
    for unit in ("results", "implicit-test", "sft-test", "implicit-round1"):
        folder = out / "units" / unit
        for file in sorted(folder.rglob("*"), reverse=True):
            file.unlink()
        folder.rmdir()
    again = stepagent.train(RUN, out, demonstrations=EXPERT, held_out=HELD_OUT, resume=True)
    assert again == made
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(metrics)


def test_a_run_is_not_resumed_with_other_data_settings_or_learners(tmp_path: Path) -> None:
    config, mine = replace(RUN, methods=()), {"idle": IdleConfig()}
    stepagent.train(config, tmp_path, demonstrations=EXPERT, held_out=HELD_OUT, learners=mine)
    for changed, others in (
        (config, {"demonstrations": EXPERT[1:]}),
        (config, {"held_out": HELD_OUT[1:]}),
        (config, {"learners": {"idle": IdleConfig(strength=2)}}),
        (replace(config, seed=1), {}),
    ):
        given = {"demonstrations": EXPERT, "held_out": HELD_OUT, "learners": mine} | others
        with pytest.raises(RunError, match="expected") as error:
            stepagent.train(changed, tmp_path, resume=True, **given)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_without_held_out_trajectories_a_share_is_held_out(tmp_path: Path) -> None:
    stepagent.train(replace(RUN, methods=()), tmp_path, demonstrations=EXPERT)
    own, other = ids(tmp_path, DEMONSTRATIONS), ids(tmp_path, DEV)
    assert len(other) == 1 and sorted(own + other) == sorted(t.id for t in EXPERT)


def test_demonstrations_that_teach_nothing_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = EXPERT[0].model_copy(update={"success": False})
    equal = EXPERT[1].model_copy(update={"id": "equal"})
    with caplog.at_level(logging.WARNING):
        stepagent.train(
            replace(RUN, methods=()),
            tmp_path,
            demonstrations=[failed, *EXPERT[1:], equal],
            held_out=HELD_OUT,
        )
    assert ids(tmp_path, DEMONSTRATIONS) == [t.id for t in EXPERT[1:]]
    told = [r.getMessage() for r in caplog.records]
    assert "train: 1 trajectories left out: marked as failed (success: false)" in told
    assert "train: 1 trajectories left out: equal to another one" in told


def test_own_demonstrations_are_used_in_the_environment_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepagent.EnvConfig, "make_task", lambda config: WORLD)
    config = replace(IN_WORLD, task=stepagent.EnvConfig(env="boxes.py:WORLD"))
    found = stepagent.train(config, tmp_path / "config", demonstrations=EXPERT, held_out=HELD_OUT)
    given = stepagent.train(
        IN_WORLD, tmp_path / "task", task=WORLD, demonstrations=EXPERT, held_out=HELD_OUT
    )
    assert found.rows == given.rows
    assert {row["split"] for row in found.rows} == {"test"}
    assert ids(tmp_path / "config", DEMONSTRATIONS) == [t.id for t in EXPERT]


def test_demonstrations_are_named_by_their_items_and_others_are_counted(tmp_path: Path) -> None:
    elsewhere = EXPERT[0].model_copy(update={"id": "elsewhere"})
    given = [elsewhere, *EXPERT[1:]]
    stepagent.train(IN_WORLD, tmp_path, task=WORLD, demonstrations=given, held_out=HELD_OUT)
    assert data_of(tmp_path)["without an item of the environment"] == {"demonstrations": 1}


def test_without_an_expert_an_environment_needs_demonstrations(tmp_path: Path) -> None:
    task = GymTask("boxes", WORLD.make_env, instruction="Fetch it.")
    with pytest.raises(ValueError, match="expert") as error:
        stepagent.train(IN_WORLD, tmp_path, task=task)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "given", "told"),
    [
        (RUN, {}, "train: expected an environment (task=... or config.task), demonstrations=..., "),
        (RUN, {"held_out": HELD_OUT}, "train: held_out is given without demonstrations"),
        (RUN, {"demonstrations": []}, "train: demonstrations is empty"),
        (RUN, {"demonstrations": EXPERT[:1]}, "demonstrations: 1 trajectory of one item; expected"),
        (RUN, {"demonstrations": EXPERT * 2}, "train: id 'near/0' occurs twice in demonstrations"),
        (
            RUN,
            {"demonstrations": EXPERT, "held_out": EXPERT[:1]},
            "train: held-out trajectory 'near/0' is also a demonstration",
        ),
        (
            replace(RUN, methods=("rft",)),
            {"demonstrations": EXPERT},
            "--methods rft: plays in an environment, which this run does not have",
        ),
        (
            replace(RUN, task=stepagent.EnvConfig(env="a.py:A")),
            {"task": WORLD},
            "train: task=boxes is given, but config.task is a EnvConfig; expected one of them",
        ),
        ("scienceworld-dmo", {}, "unknown recipe 'scienceworld-dmo'; did you mean 'scienceworld-"),
        ("none/config.json", {}, "none/config.json: "),
        ("none.py:MINE", {}, "none.py: no such file; expected a Python file with a TrainConfig"),
        ("none.py", {}, "none.py: expected none.py:NAME"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_writes_nothing(
    config: Any, given: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError)) as error:
        stepagent.train(config, tmp_path / "run", **given)
    assert str(error.value).startswith(told) or told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "learner", "told"),
    [
        ("implicit", IdleConfig(), "learners: 'implicit' is a method of StepAgent; choose another"),
        ("sft", IdleConfig(), "learners: 'sft' is a method of StepAgent"),
        ("a/b", IdleConfig(), "learners: 'a/b' names files; expected letters, digits"),
        ("idle", IdleConfig, "learners: 'idle' is the class IdleConfig; expected an instance of a"),
        ("idle", Idle(), "learners: 'idle' is an instance of Idle; expected an instance of a data"),
        ("idle", stepagent.SFTConfig(), "learners: 'idle' is an instance of SFTConfig; expected"),
    ],
)
def test_a_method_that_cannot_be_used_is_one_line(
    name: str, learner: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as error:
        stepagent.train(RUN, tmp_path, demonstrations=EXPERT, learners={name: learner})
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_settings_are_loaded_from_a_recipe_a_run_or_a_file(tmp_path: Path) -> None:
    assert stepagent.load_settings("smoke") == RECIPES["smoke"]
    config = replace(RUN, methods=())
    stepagent.train(config, tmp_path / "run", demonstrations=EXPERT, held_out=HELD_OUT)
    assert stepagent.load_settings(tmp_path / "run" / "config.json") == config
    file = tmp_path / "mine.py"
    file.write_text("import stepagent\nMINE = stepagent.TrainConfig(task=None, rounds=7)\n")
    assert stepagent.load_settings(f"{file}:MINE").rounds == 7
    again = stepagent.train(
        f"{tmp_path}/run/config.json", tmp_path / "again", demonstrations=EXPERT, held_out=HELD_OUT
    )
    assert (
        again.rows
        == stepagent.train(
            config, tmp_path / "run", demonstrations=EXPERT, held_out=HELD_OUT, resume=True
        ).rows
    )


def test_the_model_of_a_run_that_started_from_a_folder_has_to_be_named(tmp_path: Path) -> None:
    made = stepagent.train(
        replace(RUN, methods=()), tmp_path / "run", demonstrations=EXPERT, held_out=HELD_OUT
    )
    config = replace(RUN, methods=(), model=str(made.policy))
    stepagent.train(config, tmp_path / "next", demonstrations=EXPERT, held_out=HELD_OUT)
    saved = tmp_path / "next" / "config.json"
    with pytest.raises(SettingsError, match=r"its model was the folder sft; load it with load_se"):
        stepagent.load_settings(saved)
    assert stepagent.load_settings(saved, model=made.policy) == config


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"dagger": stepagent.MoreSFTConfig()}, "dagger is MoreSFTConfig; expected DAggerConfig"),
        ({"sft": stepagent.ImplicitConfig()}, "sft is ImplicitConfig; expected SFTConfig"),
        ({"methods": "implicit"}, "methods is 'implicit'; expected a tuple of sft_more, implicit"),
        ({"methods": ("implict",)}, "methods is ('implict',); expected a tuple of sft_more, "),
        ({"rounds": True}, "rounds is True; expected int"),
        ({"model": Path("m")}, "model is PosixPath; expected TinyConfig or str"),
        ({"task": "boxes"}, "task is 'boxes'; expected ScienceWorldConfig or "),
    ],
)
def test_settings_of_a_wrong_type_are_one_line(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as error:
        replace(RUN, **wrong)
    assert str(error.value).startswith(told)
