"""The run folder: what it refuses, what it keeps, and what a kill leaves of it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepagent.experiment.run import Run
from stepagent.experiment.run_json import RunError
from stepagent.files.atomic import atomic_folder
from stepagent.report.runs import ReportError, read_run

SETTINGS: dict[str, Any] = {
    "recipe": "test",
    "seed": 0,
    "protocol": {"task": "boxes"},
    "config": {"sft": {"epochs": 3, "optimizer": {"learning_rate": 0.1}}, "methods": ["implicit"]},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_unit_is_there_after_resuming_and_a_failed_one_is_not(tmp_path: Path) -> None:
    with Run(tmp_path / "run", SETTINGS, resume=False) as run:
        with run.unit("one") as folder:
            (folder / "weights").write_text("1")
        with pytest.raises(KeyError), run.unit("two") as folder:
            (folder / "weights").write_text("half")
            raise KeyError
    with Run(tmp_path / "run", SETTINGS, resume=True) as run:
        assert run.is_done("one") and not run.is_done("two")
        assert (run.unit_folder("one") / "weights").read_text() == "1"
        assert [p.name for p in (tmp_path / "run" / "units").iterdir()] == ["one"]


def test_rows_of_an_unfinished_unit_are_dropped_when_a_run_is_resumed(tmp_path: Path) -> None:
    with Run(tmp_path, SETTINGS, resume=True) as run:
        with run.unit("one"):
            run.log(stage="sft", round=0, phase="train", loss=1.5)
        with pytest.raises(KeyError), run.unit("two"):
            run.log(stage="sft", round=0, phase="train", loss=0.5)
            raise KeyError
        assert [row["loss"] for row in run.metrics()] == [1.5, 0.5]
    with Run(tmp_path, SETTINGS, resume=True) as run:
        assert [row["loss"] for row in run.metrics()] == [1.5]


def test_seconds_go_on_when_a_run_is_resumed(tmp_path: Path) -> None:
    with Run(tmp_path, SETTINGS, resume=True) as run, run.unit("one"):
        run.log(stage="sft", round=0, phase="train")
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"seconds": 1000.0}) + "\n")
    with Run(tmp_path, SETTINGS, resume=True) as run, run.unit("two"):
        run.log(stage="sft", round=0, phase="train")
        assert run.metrics()[-1]["seconds"] >= 1000


def test_a_last_line_of_metrics_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    with Run(tmp_path, SETTINGS, resume=True) as run, run.unit("one"):
        run.log(stage="sft", round=0, phase="train", loss=1.5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"unit": "two", "loss": 0.')
    with Run(tmp_path, SETTINGS, resume=True) as run:
        assert [row["loss"] for row in run.metrics()] == [1.5]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


def test_a_damaged_line_in_the_middle_of_the_metrics_is_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    with Run(tmp_path, SETTINGS, resume=True) as run, run.unit("one"):
        run.log(stage="sft", round=0, phase="train", loss=1.5)
    row = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text("{]\n" + row)
    with pytest.raises(RunError, match=r"metrics\.jsonl:1: not JSON"):
        Run(tmp_path, SETTINGS, resume=True)


def test_a_number_that_is_not_finite_is_null_in_the_metrics(tmp_path: Path) -> None:
    with Run(tmp_path, SETTINGS, resume=True) as run, run.unit("one"):
        run.log(stage="sft", round=0, phase="train", loss=float("nan"), grad_norm=float("inf"))
        assert run.metrics()[0]["loss"] is None and run.metrics()[0]["grad_norm"] is None


def test_a_row_outside_of_a_unit_is_a_mistake(tmp_path: Path) -> None:
    with (
        Run(tmp_path, SETTINGS, resume=True) as run,
        pytest.raises(RuntimeError, match="outside of a unit"),
    ):
        run.log(stage="sft", round=0, phase="train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"recipe": "smoke"}, 'recipe was "test", is now "smoke"'),
        ({"config": {**SETTINGS["config"], "sft": {"epochs": 4}}}, r"config\.sft\.epochs was 3"),
        ({"config": {**SETTINGS["config"], "new": 1}}, r"config\.new was null, is now 1"),
        ({"protocol": {}}, r'protocol\.task was "boxes", is now null'),
    ],
)
def test_other_settings_are_refused_in_one_line_that_names_the_first_that_differs(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    Run(tmp_path, SETTINGS, resume=False).close()
    before = contents(tmp_path)
    with pytest.raises(RunError, match=message) as caught:
        Run(tmp_path, SETTINGS | change, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    Run(tmp_path, SETTINGS, resume=True).close()  # the refusal has not kept the lock


def test_settings_that_decide_about_memory_may_change(tmp_path: Path) -> None:
    def settings(**compute: object) -> dict[str, Any]:
        return SETTINGS | {"config": {**SETTINGS["config"], "compute": compute}}

    Run(tmp_path, settings(device="cpu", token_budget=512), resume=False).close()
    Run(tmp_path, settings(device="cpu", token_budget=64, shard=True), resume=True).close()
    with pytest.raises(RunError, match=r"config\.compute\.device"):
        Run(tmp_path, settings(device="cuda", token_budget=512), resume=True)


def test_a_run_is_not_begun_twice(tmp_path: Path) -> None:
    Run(tmp_path, SETTINGS, resume=False).close()
    with pytest.raises(RunError, match="holds a run already; add --resume"):
        Run(tmp_path, SETTINGS, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_refused_and_stays_as_it_was(
    tmp_path: Path, resume: bool
) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(RunError, match="not empty and not a run"):
        Run(tmp_path, SETTINGS, resume=resume)
    assert contents(tmp_path) == {str(tmp_path / "thesis.tex"): b"three years"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match="a file; expected the name of a folder"):
        Run(tmp_path / "run", SETTINGS, resume=True)
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("left", [".lock", ".stepagent-0123456789abcdef.tmp"])
def test_a_run_that_was_killed_before_its_first_file_can_be_begun_again(
    tmp_path: Path, left: str
) -> None:
    (tmp_path / left).write_text("")
    with Run(tmp_path, SETTINGS, resume=False) as run:
        assert run.config["seed"] == 0


def test_a_second_process_is_refused_while_the_first_one_works(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stepagent.experiment.run import Run\n"
        "Run(Path(sys.argv[1]), {}, resume=True)"
    )
    with Run(tmp_path, SETTINGS, resume=False):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
    assert "another process is working in it" in done.stderr
    Run(tmp_path, SETTINGS, resume=True).close()


def test_a_damaged_config_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": 0')
    with pytest.raises(RunError, match=r"config\.json: not JSON"):
        Run(tmp_path, SETTINGS, resume=True)


def test_other_package_versions_are_told_of_when_a_run_is_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("stepagent.experiment.run.version", lambda _: "1.0")
        Run(tmp_path, SETTINGS, resume=False).close()
    with caplog.at_level(logging.WARNING):
        Run(tmp_path, SETTINGS, resume=True).close()
    assert 'version of stepagent was "1.0", is now' in caplog.text


def test_facts_of_the_data_are_kept_when_a_run_is_resumed(tmp_path: Path) -> None:
    with Run(tmp_path, SETTINGS, resume=False) as run:
        run.record_data("demonstrations.jsonl", {"sha256": "ab"})
    with Run(tmp_path, SETTINGS, resume=True) as run:
        assert run.config["data"] == {"demonstrations.jsonl": {"sha256": "ab"}}


def test_a_folder_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_folder(tmp_path / "policy") as folder:
        (folder / "weights").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_pipe_in_a_run_folder_is_refused_instead_of_waited_for(name: str, tmp_path: Path) -> None:
    Run(tmp_path, SETTINGS, resume=False).close()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(RunError, match=f"{name}: a pipe; expected the"):
        Run(tmp_path, SETTINGS, resume=True)
    with pytest.raises(ReportError, match=f"{name}: a pipe; expected "):
        read_run(tmp_path)


def test_a_run_that_never_began_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / ".stepagent-0.tmp").write_text("half a config.json")
    with Run(tmp_path, {"seed": 0}, resume=True):
        assert not (tmp_path / ".stepagent-0.tmp").exists()
