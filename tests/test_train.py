"""`stepagent train`: on demonstrations of one's own, and by settings from files."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import BoxWorld, demonstrations
from stepagent import cli
from stepagent.commands import train as train_command
from stepagent.experiment.run_json import read_json
from stepagent.formats.import_export import write_foreign
from stepagent.model.policy import Policy
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.trajectories import read_trajectories, write_jsonl
from stepagent.types import Step, Trajectory

TINY = [
    "--model.hidden-size", "32", "--model.num-layers", "2", "--model.num-heads", "2",
    "--model.vocab-size", "320", "--model.context", "512", "--pretrain.copying.epochs", "2",
    "--pretrain.reading.epochs", "1", "--rounds", "1",
]  # fmt: skip
"""A model from scratch that learns little, but in no time."""


def call(*args: object) -> None:
    cli.main([str(arg) for arg in args])


def fails(*args: object, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()  # what earlier commands said
    with pytest.raises(SystemExit) as ended:
        call(*args)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def messages(file: Path, trajectories: list[Trajectory]) -> Path:
    write_foreign(file, trajectories, "messages")
    return file


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of messages, as somebody else's agent leaves them."""
    return messages(tmp_path_factory.mktemp("mine") / "mine.jsonl", demonstrations()[:12])


@pytest.fixture(scope="module")
def own_run(mine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run without an environment."""
    out = tmp_path_factory.mktemp("runs") / "own"
    call("train", "own", "--demonstrations", mine, "--model", "scratch", "--out", out, *TINY,
         "--methods", "sft_more", "implicit")  # fmt: skip
    return out


def test_an_agent_is_trained_without_an_environment(own_run: Path, mine: Path) -> None:
    own, held_out = (
        {t.instruction + t.steps[-1].action for t in read_trajectories(own_run / file).trajectories}
        for file in ("demonstrations.jsonl", "practice/demonstrations-dev.jsonl")
    )
    assert own
    assert held_out
    rows = json.loads((own_run / "results.json").read_text())
    assert {(r["method"], r["metric"], r["split"]) for r in rows} == {
        (method, metric, "held-out")
        for method in ("sft", "sft_more", "implicit")
        for metric in ("agreement", "expert_logprob")
    }
    assert not [*(own_run / "episodes").iterdir()]
    dev = read_json(own_run / "units" / "implicit-round1" / "dev.json")
    assert dev.keys() == {"agreement", "expert_logprob"}


def test_the_summary_says_what_was_not_measured(own_run: Path) -> None:
    summary = (own_run / "summary.md").read_text()
    assert "Not measured: success." in summary
    assert "held-out expert steps" in summary
    report = (own_run / "report.html").read_text()
    assert "Not measured: success." in report
    assert "score (0 to 100)" not in report


def test_the_best_policy_is_named_and_opens(
    own_run: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("train", "own", "--demonstrations", mine, "--model", "scratch", "--out", own_run, *TINY,
         "--methods", "sft_more", "implicit", "--resume")  # fmt: skip
    told = capsys.readouterr().out.splitlines()
    (line,) = [line for line in told if line.startswith("Policy: ")]
    assert Policy.load(line.removeprefix("Policy: ")).context == 512
    (command,) = [line for line in told if line.startswith("Try it: ")]
    assert command.startswith(f"Try it: stepagent inspect --policy {own_run}/units/")


def test_a_changed_input_is_refused_when_the_run_is_resumed(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = messages(tmp_path / "mine.jsonl", demonstrations()[:13])
    error = fails("train", "own", "--demonstrations", other, "--model", "scratch", *TINY,
                  "--methods", "sft_more", "implicit", "--out", own_run, "--resume",
                  capsys=capsys)  # fmt: skip
    assert "inputs.demonstrations: its content has changed since the run began" in error


def test_the_settings_of_a_run_are_those_of_another(
    own_run: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    call("train", own_run / "config.json", "--demonstrations", mine, "--model", "scratch",
         "--out", again)  # fmt: skip
    first, second = (read_json(run / "config.json") for run in (own_run, again))
    for same in ("recipe", "config", "inputs"):
        assert first[same] == second[same]
    assert (again / "summary.md").read_text() == (own_run / "summary.md").read_text()


def test_a_novice_is_reused_for_other_learners(
    own_run: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    call("train", "own", "--demonstrations", mine, "--model", "scratch", "--out", out, *TINY,
         "--methods", "step_dpo", "--novice", own_run)  # fmt: skip
    rows = json.loads((out / "results.json").read_text())
    assert {row["method"] for row in rows} == {"sft", "step_dpo"}
    error = fails("train", "own", "--demonstrations", mine, "--model", "scratch", "--out",
                  tmp_path / "new", *TINY, "--held-out-share", "0.5", "--novice", own_run,
                  capsys=capsys)  # fmt: skip
    assert "its novice began with other inputs: held_out" in error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--methods", "rft"], "--methods rft: needs an environment, which this run does"),
        (["--methods", "dagger", "--detours", "1"], "--methods dagger: needs an environment"),
        (["--detours", "1"], "--detours 1: needs an environment, which this "),
        (["--inverse.states", "rollout"], "--inverse.states rollout: needs an environment"),
        (["--prompting.methods", "react"], "--prompting.methods react: needs an environment"),
        (["--lora.rank", "4"], "--lora.rank: a model made from scratch has nothing to adapt"),
        (["--held-out-share", "1"], "--held-out-share 1: expected a share between 0 and 1"),
        (["--held-out", "{tmp}/none.jsonl", "--held-out-share", "0.3"], "--held-out-share has no "),
        (["--best", "5"], "--best has no effect without an environment; name one with --env"),
        (["--env", ""], "no environment is named; expected MODULE:NAME, FILE.py:NAME, openenv:"),
        (["--lora.target-modules", "("], "--lora.target-modules (: not a regular expression (mis"),
        (["--data.sft", "3"], "--data.shared 50: expected 0 to 3, with 3 demonstrations for SFT"),
        (["--held-out", "{tmp}/none.jsonl"], "{tmp}/none.jsonl: no such file; expected a file of "),
        (["--model", "{tmp}/none"], "{tmp}/none: no such folder; expected a Hugging Face model f"),
        (["--model", "{tmp}"], "{tmp}: not a model folder: it has no config.json"),
        (["--demonstrations", "{tmp}/none.jsonl"], "{tmp}/none.jsonl: no such file; expected a "),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_anything_is_written(
    options: list[str],
    expected: str,
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"--demonstrations": mine, "--model": "scratch", "--out": tmp_path / "run"}
    names = [option.format(tmp=tmp_path) for option in options]
    given |= dict(zip(names[::2], names[1::2], strict=True))
    args = [part for pair in given.items() for part in pair]
    error = fails("train", "own", *args, *TINY, capsys=capsys)
    assert error.startswith(f"stepagent: {expected.format(tmp=tmp_path)}")
    assert not (tmp_path / "run").exists()


GAME = """
import gymnasium as gym

class Doors(gym.Env):
    instruction = "Open the door that is not locked."

    def reset(self, *, seed=None, options=None):
        self.open = seed % 7
        return f"All doors but door {self.open} are locked.", {}

    def step(self, action):
        won = action == f"open door {self.open}"
        return ("It opens." if won else "It is locked."), float(won), won, False, {}
"""


FAULTS = (
    GAME
    + """
import sys
from stepagent.tasks.adapters.gymnasium import GymTask

class NoLevel(Doors):
    def reset(self, *, seed=None, options=None):
        if seed >= 2000000:
            raise KeyError(seed)
        return super().reset(seed=seed)

class Quits(Doors):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed) if seed < 1000000 else sys.exit(1)

class Long(Doors):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0] + " And?" * (seed // 100), {}

WITHOUT_DEV = GymTask("NoLevel", NoLevel, {"train": {"a": {"seed": 1}}, "test": {"b": {"seed": 2}}})
"""
)


def door(seed: int, **fields: object) -> Trajectory:
    """What an expert does in the game with this seed."""
    step = Step(observation=f"All doors but door {seed % 7} are locked.",
                action=f"open door {seed % 7}")  # fmt: skip
    whole = Trajectory(
        id=f"mine {seed}",
        task="doors",
        instruction="Open the door that is not locked.",
        steps=(step,),
        metadata={"seed": seed},
    )
    return whole.model_copy(update=fields)


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an environment and demonstrations from it, two of them without a seed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "game.py").write_text(GAME)
    doors = [door(0), door(1), door(2), door(3), door(4), door(5, metadata={}), door(6)]
    write_jsonl(tmp_path / "doors.jsonl", doors)
    return tmp_path


PLAY = ["--env", "game.py:Doors", "--step-limit", "2", "--data.dev", "2", "--data.test", "3",
        "--demonstrations", "doors.jsonl", "--model", "scratch", "--out", "run"]  # fmt: skip


def test_with_an_environment_agents_are_compared_by_what_they_achieve(
    game: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("train", "own", *PLAY, *TINY, "--methods", "implicit", "rft")
    out = capsys.readouterr().out
    assert "1 mistake in a row inserted" in out
    rows = json.loads((game / "run" / "results.json").read_text())
    assert {(r["method"], r["split"], r["n"]) for r in rows} == {
        (method, "test", 3) for method in ("sft", "implicit", "rft")
    }
    config = read_json(game / "run" / "config.json")
    assert config["config"]["task"]["env"] == "game.py:Doors"
    assert config["config"]["detours"] == 1
    used = read_trajectories(game / "run" / "demonstrations.jsonl").trajectories
    assert {t.id for t in used} <= {f"seed/{n}" for n in range(7)} | {"mine 5"}
    known = config["data"].get("without an item of the environment")
    assert known == ({"demonstrations": 1} if "mine 5" in {t.id for t in used} else None)
    # A changed environment is another run.
    (game / "game.py").write_text(GAME + "\n")
    error = fails("train", "own", *PLAY, *TINY, "--methods", "implicit", "rft", "--resume",
                  capsys=capsys)  # fmt: skip
    assert "inputs.env: its content has changed since the run began" in error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--env", "game.py:Door"], "game.py has no Door; did you mean Doors?"),
        (["--demonstrations", "strange.jsonl"], "--detours 1: played in the demonstrations' items"),
        (["--test-items", "0-6"], "test_items must have no number in common with train_items"),
        (["--env", "game.py:NoLevel"], "seed/2000459: reset(seed=2000459) raised KeyError: 20004"),
        (["--env", "game.py:Quits"], "seed/1000459: reset(seed=1000459) raised SystemExit: 1 (ga"),
        (["--env", "game.py:Long"], "seed/1000459: its first state has "),
        (["--env", "game.py:WITHOUT_DEV"], "NoLevel: no dev items; expected at least one"),
    ],
)
def test_an_environment_that_cannot_be_played_in_is_one_line(
    game: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(game / "strange.jsonl", [door(n, metadata={}) for n in range(4)])
    (game / "game.py").write_text(FAULTS)
    detours = "0" if "WITHOUT_DEV" in options[1] else "1"
    limit = ["--step-limit", "30"] if "WITHOUT_DEV" in options[1] else []
    error = fails("train", "own", *PLAY, *TINY, *limit, "--detours", detours, *options,
                  capsys=capsys)  # fmt: skip
    assert error.startswith(f"stepagent: {expected}")
    assert not (game / "run").exists()


def test_an_environment_without_an_expert_needs_demonstrations(
    game: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*PLAY[: PLAY.index("--demonstrations")], "--model", "scratch", "--out", "run"]
    error = fails("train", "own", *args, *TINY, capsys=capsys)
    assert "the environment's expert solves none of 8 training items: " in error
    assert error.endswith("name a file of demonstrations with --demonstrations\n")


def test_demonstrations_are_collected_from_a_task_that_has_an_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "game.py").write_text("from fakes import BoxWorld")
    call("train", "own", "--env", "game.py:BoxWorld", "--model", "scratch", "--out", "run", *TINY,
         "--data.sft", "3", "--data.shared", "3", "--data.reflection", "4", "--data.dev", "1",
         "--data.test", "1", "--methods", "implicit")  # fmt: skip
    used = read_trajectories(tmp_path / "run" / "demonstrations.jsonl").trajectories
    assert len(used) == 8  # four in each of the two groups
    assert "collected from the environment's expert" in capsys.readouterr().out


def test_a_model_without_a_chat_template_is_one_line(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    tiny = TinyConfig(vocab_size=300, hidden_size=32, num_layers=1, num_heads=2)
    build_tiny_model(demonstrations()[:3], tiny, seed=0, folder=model)
    (model / "chat_template.jinja").unlink()
    capsys.readouterr()
    error = fails("train", "own", "--demonstrations", mine, "--model", model, "--out",
                  tmp_path / "run", capsys=capsys)  # fmt: skip
    assert error.startswith(f"stepagent: {model}: no chat template; use an instruction-tuned model")


def test_the_run_cannot_be_written_over_its_input(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails("train", "own", "--demonstrations", mine, "--model", "scratch", "--out", mine,
                  capsys=capsys)  # fmt: skip
    assert "it is the input" in error


def test_help_begins_with_ones_own_agent(capsys: pytest.CaptureFixture[str]) -> None:
    call("train", "--help")
    text = capsys.readouterr().out
    places = [text.index(part) for part in ("own  ", "a recipe's name", "a file", "Recipes: ")]
    assert places == sorted(places)


def test_the_options_that_matter_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("train", "own", "--help")
    lines = [line.strip("│| ") for line in capsys.readouterr().out.splitlines()]
    options = [line.split()[0] for line in lines if line.startswith("--")]
    first = ["--demonstrations", "--model", "--out", "--held-out", "--held-out-share"]
    assert [option for option in options if option in first] == first
    assert options.index("--methods") < options.index("--data.sft")


SETTINGS = """
from dataclasses import replace
from stepagent.experiment.recipes import RECIPES

MINE = replace(RECIPES["smoke"], methods=("sft_more",))
"""


def test_a_recipe_in_a_python_file_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "open_task", lambda _: BoxWorld())
    file = tmp_path / "settings.py"
    file.write_text(SETTINGS)
    call("train", f"{file}:MINE", "--out", tmp_path / "run", "--model.vocab-size", "320",
         "--data.dev", "1")  # fmt: skip
    config: dict[str, Any] = read_json(tmp_path / "run" / "config.json")
    assert config["recipe"] == "settings.py:MINE"
    assert config["config"]["methods"] == ["sft_more"]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("owm", "unknown recipe 'owm'; did you mean 'own'? allowed: own, scienceworld-demo, "),
        ("{tmp}/config.json", "{tmp}/config.json: no such file; expected the config.json of a run"),
        ("{tmp}/old", "{tmp}/old: a folder; expected {tmp}/old/config.json"),
        ("{tmp}/mine.py", "{tmp}/mine.py: expected {tmp}/mine.py:NAME, with the name of a Train"),
        ("{tmp}/mine.py:MINE", "{tmp}/mine.py: no such file; expected a Python file with a Tra"),
    ],
)
def test_an_unknown_recipe_is_one_line(
    recipe: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    error = fails("train", recipe.format(tmp=tmp_path), "--out", tmp_path / "run", capsys=capsys)
    assert error.startswith(f"stepagent: {expected.format(tmp=tmp_path)}")
