"""The fault test itself: a short run of it loses nothing, and each of its verdicts can come out."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import fault_damage
import fault_kinds
import faults
import pytest
from fault_runs import Outcome, difference, files, run

LINE = "stepagent: run/config.json: changed since it was written; restore it\n"


@pytest.mark.slow
def test_a_short_run_loses_nothing() -> None:
    command = [sys.executable, str(Path(faults.__file__)), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [kind for kind in faults.KINDS if not kind.startswith("jvm")]
    if not fault_kinds.can_mount():
        kinds = ["full-disk:", "kind", *(kind for kind in kinds if kind != "full-disk")]
    else:
        kinds = ["kind", *kinds]
    assert [line.split()[0] for line in done.stdout.splitlines()] == kinds


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Puts a function in the place of the command line."""

    def put(main: Callable[[], None]) -> None:
        monkeypatch.setattr("fault_runs.cli.main", main)

    return put


def writes(name: str = "out", text: str = "whole") -> Callable[[], None]:
    def main() -> None:
        Path(name).write_text(text)

    return main


def lab(tmp_path: Path) -> fault_kinds.Lab:
    """One whose only command leaves the file `out`."""
    folder = tmp_path / "unbroken"
    whole = fault_kinds.Unbroken("train", folder, {"out": b"whole"}, 0.2, 1)
    return fault_kinds.Lab(tmp_path, {"train": whole}, "")


def case(tmp_path: Path) -> Path:
    folder = tmp_path / "case"
    folder.mkdir()
    return folder


def test_equal_files_are_survival_and_others_are_loss(
    tmp_path: Path, command: Callable[[Callable[[], None]], None]
) -> None:
    folder = case(tmp_path)
    command(writes())
    assert fault_kinds.go_on(lab(tmp_path), "train", folder) == ("survived", "")
    command(writes(text="other"))
    assert fault_kinds.go_on(lab(tmp_path), "train", folder) == ("lost", "out is changed")
    command(writes("more"))
    (folder / "out").write_text("whole")
    assert fault_kinds.go_on(lab(tmp_path), "train", folder) == ("lost", "more is extra")


def refuses(errors: str, code: int = 2) -> Callable[[], None]:
    def main() -> None:
        print(errors, end="", file=sys.stderr)
        raise SystemExit(code)

    return main


def test_one_line_is_a_refusal_and_a_traceback_is_loss(
    tmp_path: Path, command: Callable[[Callable[[], None]], None]
) -> None:
    folder = case(tmp_path)
    command(refuses("sft: done\n" + LINE))
    assert fault_kinds.go_on(lab(tmp_path), "train", folder)[0] == "refused"
    for main in (refuses(LINE * 2), refuses(LINE, 1), refuses(""), lambda: [][1]):
        command(main)
        assert fault_kinds.go_on(lab(tmp_path), "train", folder)[0] == "lost"


def test_a_refusal_has_to_name_the_file() -> None:
    names = ["config.json", "sft"]
    assert fault_damage.said(Outcome(2, LINE), names, "")[0] == "refused"
    assert fault_damage.said(Outcome(2, LINE), ["panels.json"], "")[0] == "lost"
    assert fault_damage.said(Outcome(2, LINE, hung=True), names, "")[0] == "lost"


def test_a_signal_that_nobody_minds_is_loss(
    tmp_path: Path, command: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits() -> None:
        signal.pause()

    every = {name: lab(tmp_path).commands["train"] for name in fault_kinds.LINES}
    whole = fault_kinds.Lab(tmp_path, every, "")
    command(waits)
    verdict, reason = fault_kinds.interrupt(Random(0), whole, case(tmp_path))
    assert verdict == "lost"
    assert "exit code" in reason


def test_changes_of_the_disk_are_counted_and_can_be_the_last(
    tmp_path: Path, command: Callable[[Callable[[], None]], None]
) -> None:
    def three() -> None:
        for name in "abc":
            Path(name).write_text(name)
        Path("a").read_text()
        os.replace("a", "d")

    command(three)
    for last, left in ((1, []), (3, ["a", "b"]), (4, ["a", "b", "c"]), (5, ["b", "c", "d"])):
        folder = tmp_path / str(last)
        folder.mkdir()
        outcome = run("train", folder, fault_kinds.Change(last, fault_kinds.die))
        assert outcome.code == (0 if last == 5 else -signal.SIGKILL)
        assert sorted(files(folder)) == left


def test_what_only_tells_the_time_is_not_compared(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.json").write_text('{"created": "now", "seed": 1, "sha256": "ab"}')
    (run_folder / "metrics.jsonl").write_text('{"loss": 2, "seconds": 1}\n{"loss": 1}\n')
    before = files(tmp_path)
    (run_folder / "config.json").write_text('{"created": "later", "seed": 1, "sha256": "cd"}')
    (run_folder / "metrics.jsonl").write_text('{"loss": 2, "seconds": 9}\n{"loss": 1}\n')
    assert difference(tmp_path, before) is None
    (run_folder / "metrics.jsonl").write_text('{"loss": 3, "seconds": 1}\n{"loss": 1}\n')
    assert difference(tmp_path, before) == "run/metrics.jsonl is changed"


@pytest.mark.parametrize("do", [fault_damage.flip, fault_damage.edit_lines, fault_damage.spoil])
def test_damage_is_done_and_told(tmp_path: Path, do: Callable[[Random, Path], str | None]) -> None:
    for seed in range(12):
        folder = tmp_path / str(seed) / "units"
        folder.mkdir(parents=True)
        for name in ("a.jsonl", "b.jsonl"):
            (folder / name).write_text(f"{name}\n1\n2\n")
        before = (folder / "a.jsonl").read_bytes()
        done = do(Random(seed), folder / "a.jsonl")
        there = (folder / "a.jsonl").exists()
        assert (done is None) == (there and (folder / "a.jsonl").read_bytes() == before)
