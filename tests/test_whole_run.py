"""`stepagent.train`: a whole run from Python, on data, environments and methods of the user's."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import stepagent
from fakes import WORLD, demonstrations
from stepagent.experiment.config import SettingsError
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run_json import RunError, read_config, write_config
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


MINE = {"idle": IdleConfig()}
GIVEN: dict[str, Any] = {"demonstrations": EXPERT, "held_out": HELD_OUT, "learners": MINE}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> stepagent.Results:
    """A run on demonstrations, with a method of one's own."""
    return stepagent.train(RUN, tmp_path_factory.mktemp("runs") / "run", **GIVEN)


def test_a_run_on_demonstrations_keeps_their_order_and_sides(made: stepagent.Results) -> None:
    assert ids(made.folder, DEMONSTRATIONS) == [t.id for t in EXPERT]
    assert ids(made.folder, DEV) == [t.id for t in HELD_OUT]
    assert {row["split"] for row in made.rows} == {"held-out"}
    assert {row["method"] for row in made.rows} == {"sft", "implicit", "idle"}
    with pytest.raises(KeyError, match="no 'success' of 'implicit'"):
        made.mean("implicit")


def test_the_results_name_the_policy_that_did_best(made: stepagent.Results) -> None:
    best = max(("sft", "implicit"), key=lambda method: made.mean(method, "agreement") or 0)
    assert made.policy == made.policy_folder(best)
    assert made.policy_folder("idle") == made.policy_folder("sft")
    assert stepagent.Policy.load(made.policy).context == 256
    with pytest.raises(RunError, match="inverse-test"):
        made.policy_folder("inverse")


def test_a_run_is_resumed_to_the_same_numbers(made: stepagent.Results, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(made.folder, out)
    for unit in ("results", "idle-test", "implicit-test", "sft-test", "idle-round1"):
        shutil.rmtree(out / "units" / unit)  # as if it had been killed before
    for file in ("results.json", "summary.md"):
        (out / file).unlink()
    again = stepagent.train(RUN, out, resume=True, **GIVEN)
    assert (again.rows, again.summary) == (made.rows, made.summary)
    assert again.policy.relative_to(out) == made.policy.relative_to(made.folder)


def test_a_run_is_not_resumed_with_other_data_settings_or_learners(
    made: stepagent.Results,
) -> None:
    with pytest.raises(RunError, match="holds a run already"):
        stepagent.train(RUN, made.folder, **GIVEN)
    for changed, others, told in (
        (RUN, {"demonstrations": EXPERT[1:]}, "inputs.demonstrations"),
        (RUN, {"held_out": HELD_OUT[1:]}, "inputs.held_out"),
        (RUN, {"learners": {"idle": IdleConfig(strength=2)}}, "inputs.learner idle"),
        (replace(RUN, seed=1), {}, "seed was 0, is now 1"),
    ):
        with pytest.raises(RunError, match=told) as error:
            stepagent.train(changed, made.folder, resume=True, **(GIVEN | others))
        assert "\n" not in str(error.value)


def test_without_held_out_trajectories_a_share_is_held_out_of_those_that_can_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = EXPERT[0].model_copy(update={"success": False})
    equal = EXPERT[1].model_copy(update={"id": "equal"})
    given = [failed, *EXPERT[1:], equal]
    with caplog.at_level(logging.WARNING):
        stepagent.train(replace(RUN, methods=()), tmp_path, demonstrations=given)
    own, other = ids(tmp_path, DEMONSTRATIONS), ids(tmp_path, DEV)
    assert own == [t.id for t in EXPERT[1:] if t.id in own]
    assert len(other) == 1 and {*own, *other} == {t.id for t in EXPERT[1:]}
    told = [r.getMessage() for r in caplog.records]
    assert "train: 1 trajectories left out: marked as failed (success: false)" in told
    assert "train: 1 trajectories left out: equal to another one" in told


def test_own_demonstrations_are_used_in_the_environment_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepagent.EnvConfig, "make_task", lambda config: WORLD)
    config = replace(IN_WORLD, task=stepagent.EnvConfig(env="boxes.py:WORLD"))
    own = [EXPERT[0].model_copy(update={"id": "elsewhere"}), *EXPERT[1:]]
    found = stepagent.train(config, tmp_path, demonstrations=own, held_out=HELD_OUT)
    assert {row["split"] for row in found.rows} == {"test"}
    assert ids(tmp_path, DEMONSTRATIONS) == [t.id for t in own]
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
            "--methods rft: needs an environment, which this run does not have",
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
    with pytest.raises((ValueError, RuntimeError, OSError)) as error:
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


def test_settings_are_loaded_from_a_recipe_a_run_or_a_file(
    made: stepagent.Results, tmp_path: Path
) -> None:
    assert stepagent.load_settings("smoke") == RECIPES["smoke"]
    saved = made.folder / "config.json"
    assert stepagent.load_settings(saved) == RUN
    file = tmp_path / "mine.py"
    file.write_text("import stepagent\nMINE = stepagent.TrainConfig(task=None, rounds=7)\n")
    assert stepagent.load_settings(f"{file}:MINE").rounds == 7
    assert stepagent.train(str(saved), made.folder, resume=True, **GIVEN) == made


def test_the_model_of_a_run_that_started_from_a_folder_has_to_be_named(
    made: stepagent.Results, tmp_path: Path
) -> None:
    saved = read_config(made.folder)
    assert saved is not None
    saved["config"]["model"], saved["inputs"]["model"] = "sft", "the hash of its files"
    write_config(tmp_path, saved)
    with pytest.raises(SettingsError, match=r"its model was the folder sft; load it with load_se"):
        stepagent.load_settings(tmp_path / "config.json")
    named = stepagent.load_settings(tmp_path / "config.json", model=made.policy)
    assert named == replace(RUN, model=str(made.policy))


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
