"""A whole run on the world of boxes: repeatable, and the same however often it was killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import BoxWorld
from stepagent import practice
from stepagent.algorithms.discriminator import DiscriminatorConfig
from stepagent.algorithms.sft import SFTConfig
from stepagent.evaluation import EvaluationConfig, choose_items
from stepagent.experiment.config import DataConfig, TrainConfig
from stepagent.experiment.novice import check_novice, take_novice
from stepagent.experiment.pipeline import PANEL_SEED, train
from stepagent.experiment.run import Run, to_json
from stepagent.experiment.run_json import RunError
from stepagent.learners import inverse
from stepagent.learners.base import LearnerStopped
from stepagent.learners.inverse import InverseConfig
from stepagent.learners.sft import MoreSFTConfig
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.practice import InspectionConfig
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.report.page import write_report
from stepagent.scratch.pretraining import PretrainConfig
from stepagent.scratch.small_model import TinyConfig
from stepagent.tasks.scienceworld.task import ScienceWorldConfig

FAST = OptimizerConfig(learning_rate=3e-3)
CONFIG = TrainConfig(
    task=ScienceWorldConfig(task_types=("near", "far")),
    data=DataConfig(sft=4, reflection=6, shared=4, dev=2, test=3),
    model=TinyConfig(vocab_size=320, hidden_size=32, num_layers=2, num_heads=2, context=512),
    pretrain=PretrainConfig(
        reading=SFTConfig(epochs=1, optimizer=FAST), copying=SFTConfig(epochs=2, optimizer=FAST)
    ),
    sft=SFTConfig(epochs=4, optimizer=FAST),
    sft_more=MoreSFTConfig(epochs=1, optimizer=FAST),
    rounds=2,
    inspection=InspectionConfig(decoding=Decoding(max_new_tokens=8)),
    inverse=InverseConfig(discriminator=DiscriminatorConfig(warmup_epochs=20, optimizer=FAST)),
    evaluation=EvaluationConfig(decoding=Decoding(max_new_tokens=8, temperature=0.0)),
)


def open_run(folder: Path, config: TrainConfig, *, resume: bool = False) -> Run:
    settings = {"recipe": "boxes", "seed": config.seed, "protocol": {}, "config": to_json(config)}
    return Run(folder, settings, resume=resume)


def finish(folder: Path, config: TrainConfig = CONFIG, *, resume: bool = False) -> Path:
    with open_run(folder, config, resume=resume) as run:
        train(config, run, BoxWorld())
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return finish(tmp_path_factory.mktemp("runs") / "whole")


def files(folder: Path) -> dict[str, bytes]:
    """All that a run wrote, by name, without what tells the time."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("config.json", "metrics.jsonl", ".lock")
    }
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        del row["seconds"]
        found[f"metrics row {len(found)}"] = json.dumps(row).encode()
    return found


def assert_same(folder: Path, other: Path) -> None:
    mine, others = files(folder), files(other)
    assert mine.keys() == others.keys()
    assert [name for name in mine if mine[name] != others[name]] == []


def test_a_run_writes_all_its_parts(whole: Path) -> None:
    rows = json.loads((whole / "results.json").read_text())
    assert {(r["method"], r["metric"]) for r in rows} == {
        (method, metric)
        for method in ("sft", "sft_more", "implicit", "inverse")
        for metric in ("score", "success", "steps")
    }
    assert {(r["task"], r["split"], r["n"], r["seed"]) for r in rows} == {("boxes", "test", 6, 0)}
    units = {path.name for path in (whole / "units").iterdir()}
    assert {"data", "sft", "sft_more-round2", "implicit-round2", "inverse-round2"} <= units
    weights = whole / "units" / "inverse-round2" / "discriminator" / "model.safetensors"
    assert weights.stat().st_size > 1000


def test_the_report_reads_a_run(whole: Path, tmp_path: Path) -> None:
    write_report([whole], tmp_path / "report.html")
    assert "implicit reflection" in (tmp_path / "report.html").read_text().lower()


def test_what_the_novice_does_is_found_out_once_for_all_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    practised = []
    inspect = practice.inspect

    def counted(policy: Policy, demonstrations: list[RenderedTrajectory], *args: Any, **more: Any):  # type: ignore[no-untyped-def]
        practised.append(len(demonstrations))
        return inspect(policy, demonstrations, *args, **more)

    monkeypatch.setattr(practice, "inspect", counted)
    config = replace(
        CONFIG,
        rounds=1,
        methods=("implicit", "inverse"),
        data=replace(CONFIG.data, reflection=3, shared=0),
    )
    finish(tmp_path / "run", config)
    # Of two groups, 3 demonstrations and 2 of dev: before the first round, and what inverse
    # reflection made of them in the end; then dev for the novice, to compare the two.
    assert practised == [6, 4, 6, 4, 4]


def test_trajectories_that_do_not_fit_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = replace(
        CONFIG, rounds=1, methods=("implicit",), model=replace(CONFIG.model, context=80)
    )
    folder = finish(tmp_path / "run", short)
    data = json.loads((folder / "config.json").read_text())["data"]
    assert data["SFT, too long"]["of"] == 8
    assert 0 < len(data["SFT, too long"]["left_out"]) < 8
    assert "the model's context is 80" in data["SFT, too long"]["left_out"][0]
    assert "trajectories, longer than the model's context of 80 tokens" in caplog.text


def test_the_same_seed_gives_the_same_files_and_another_seed_others(
    whole: Path, tmp_path: Path
) -> None:
    short = replace(CONFIG, rounds=1, methods=("implicit",))
    one, again = finish(tmp_path / "one", short), finish(tmp_path / "again", short)
    other = finish(tmp_path / "other", replace(short, seed=1))
    assert_same(one, again)
    weights = Path("units") / "implicit-round1" / "model.safetensors"
    assert (one / weights).read_bytes() == (whole / weights).read_bytes()
    assert (one / weights).read_bytes() != (other / weights).read_bytes()


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


def dies_at_row(count: int) -> Callable[..., None]:
    """`Run.log`, until so many rows are written."""
    log, left = Run.log, iter(range(count))

    def counted(run: Run, **row: Any) -> None:
        log(run, **row)
        if next(left, None) is None:
            raise Killed

    return counted


def rows_of(whole: Path, stage: str, phase: str) -> Iterator[int]:
    """Numbers of the rows of a stage and phase."""
    for number, line in enumerate((whole / "metrics.jsonl").read_text().splitlines()):
        row = json.loads(line)
        if (row["stage"], row["phase"]) == (stage, phase):
            yield number


@pytest.mark.parametrize(
    ("stage", "phase"), [("sft", "train"), ("sft_more", "dev"), ("inverse", "ppo")]
)
def test_a_run_that_was_cut_off_resumes_to_the_same_files(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, phase: str
) -> None:
    numbers = list(rows_of(whole, stage, phase))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "log", dies_at_row(numbers[3 * len(numbers) // 4]))
        finish(tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    assert_same(finish(tmp_path / "run", resume=True), whole)


def test_a_finished_run_resumes_to_itself(whole: Path) -> None:
    before = files(whole)
    finish(whole, resume=True)
    assert files(whole) == before


KILL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_pipeline
from stepagent.experiment.run import Run

log, left = Run.log, iter(range(int(sys.argv[3])))

def counted(run, **row):
    log(run, **row)
    if next(left, None) is None:
        # As if the power went in the middle of a line.
        with open(run.folder / "metrics.jsonl", "a") as file:
            file.write('{"unit": "sf')
        os.kill(os.getpid(), signal.SIGKILL)

Run.log = counted
test_pipeline.finish(Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["train", "dev"])
def test_a_killed_process_leaves_a_run_that_resumes_to_the_same_files(
    whole: Path, tmp_path: Path, phase: str
) -> None:
    row = list(rows_of(whole, "implicit", phase))[-1]
    arguments = [str(Path(__file__).parent), str(tmp_path / "run"), str(row)]
    done = subprocess.run([sys.executable, "-c", KILL, *arguments], env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "run" / "units").glob(".stepagent-*.tmp"))
    assert_same(finish(tmp_path / "run", resume=True), whole)
    assert not list((tmp_path / "run").rglob(".stepagent-*.tmp"))


def test_a_novice_taken_over_learns_as_in_its_own_run(whole: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, methods=("implicit",))
    with open_run(tmp_path / "run", config) as run:
        take_novice(run, whole)
        assert run.is_done("sft")
        train(config, run, BoxWorld())
    mine, others = files(tmp_path / "run"), files(whole)
    rows = {name for name in mine if name.startswith("metrics row")}
    assert {mine[name] for name in rows} <= set(others.values())
    different = {name for name in mine if name not in rows and mine[name] != others[name]}
    # Of one method, not of all.
    assert different == {"results.json", "summary.md", "units/results/manifest.json"}
    assert any(name.startswith("units/implicit-round2/") for name in mine)


def test_a_novice_of_other_settings_is_refused(whole: Path, tmp_path: Path) -> None:
    other = to_json(replace(CONFIG, sft=SFTConfig(epochs=5, optimizer=FAST)))
    open_run(tmp_path / "begun", CONFIG).close()
    for folder, settings, message in (
        (whole, {"protocol": {}, "config": other}, "its novice has other settings of --sft"),
        (whole, {"protocol": {"engine": "2"}, "config": other}, "its task has another protocol"),
        (tmp_path / "begun", {}, "has no novice yet"),
        (tmp_path / "none", {}, "no run; expected a folder"),
    ):
        with pytest.raises(RunError, match=f"{folder.name}: {message}"):
            check_novice(folder, settings)


def test_a_discriminator_at_chance_stops_its_method_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_chance(*_: object, **__: object) -> None:
        raise LearnerStopped("no better than chance")

    monkeypatch.setattr(inverse, "train_discriminator", at_chance)
    folder = finish(tmp_path / "run", replace(CONFIG, rounds=1))
    results = json.loads((folder / "results.json").read_text())
    means = {(r["method"], r["metric"]): r["mean"] for r in results}
    assert means["inverse", "score"] == means["sft", "score"]
    assert {m for m, _ in means} == {"sft", "sft_more", "implicit", "inverse"}
    summary = (folder / "summary.md").read_text()
    assert "Inverse reflection was stopped: no better than chance." in summary


def test_lost_environments_cost_their_own_items_and_are_counted_everywhere(tmp_path: Path) -> None:
    config = replace(CONFIG, methods=("rft",), rounds=1)
    world = BoxWorld()
    items, dev, test = (
        choose_items(world, split, number, seed=PANEL_SEED)
        for split, number in (("train", 6), ("dev", 2), ("test", 3))
    )
    lost = {(item, 0): 10_000 for item in (items[0], dev[1], test[2])}
    with open_run(tmp_path / "run", config) as run:
        train(config, run, BoxWorld(lost=lost))
        data = run.config["data"]
    assert data["demonstrations.jsonl"]["lost"] == [f"{items[0]}: lost at step 0"]
    assert data["demonstrations.jsonl"]["trajectories"] == len(items) - 1
    assert data["sft-test, lost"] == {"lost": [f"{test[2]}: lost at step 0"], "of": 6}
    assert data["rft-test, lost"] == data["sft-test, lost"]
    assert data["rft-dev-round1, lost"] == {"lost": [f"{dev[1]}: lost at step 0"], "of": 4}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["lost"] for row in rows if row["phase"] == "dev"] == [1, 1]
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "SFT (start): 1 of 6 test episodes lost, see config.json." in summary
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["n"] for row in results} == {5}
