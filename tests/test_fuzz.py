"""The fuzz test itself: a short run of every kind passes, and each of its oracles can fail."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import fuzz_inputs
import fuzz_parsers
import fuzz_readers
import fuzz_report
import fuzz_servers
import pytest
from fuzz_inputs import Loss

from stepagent.rendering.actions import ThoughtAndAction
from stepagent.rendering.renderer import RenderedTrajectory, Renderer
from stepagent.trajectories import ReadResult

SCRIPT = Path(fuzz.__file__)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_short_run_of_every_kind_loses_nothing() -> None:
    done = run("--total", "2500")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == len(fuzz.KINDS) + 2


def test_a_case_is_the_same_every_time(tmp_path: Path) -> None:
    rngs = [random.Random(f"7/{kind}/3") for kind in ("read", "read", "parse")]
    texts = [fuzz_inputs.trajectory(rng).model_dump_json() for rng in rngs]
    assert texts[0] == texts[1] != texts[2]


def fails(kind: str, folder: Path, cases: int = 60) -> set[str]:
    """What becomes of some cases of a kind."""
    fuzz.prepare_timers()
    found = (fuzz.run_case(kind, 0, number, folder) for number in range(cases))
    return {one[0] for one in found if one}


def test_errors_of_several_lines_and_errors_of_others_are_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_lines(*_: Any) -> None:
        from stepagent.trajectories import TrajectoryError

        raise TrajectoryError("a\nb")

    def other(*_: Any) -> None:
        raise KeyError("x")

    for broken in (two_lines, other):
        monkeypatch.setitem(fuzz.KINDS, "parse", (1, broken))
        assert fails("parse", tmp_path, 2) == {"crashes"}


def test_what_takes_too_long_is_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.05)
    monkeypatch.setitem(fuzz.KINDS, "parse", (1, endless))
    assert fails("parse", tmp_path, 1) == {"hangs"}


def lossy_read(real: Callable[..., ReadResult]) -> Callable[..., ReadResult]:
    def read(*args: Any, **options: Any) -> ReadResult:
        found = real(*args, **options)
        return ReadResult(trajectories=found.trajectories[:1], rejected=found.rejected)

    return read


def test_a_lost_record_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fuzz_readers.read_trajectories
    monkeypatch.setattr(fuzz_readers, "read_trajectories", lossy_read(real))
    assert "losses" in fails("read", tmp_path)


def test_a_lost_text_of_an_action_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(renderer: Renderer, trajectory: Any) -> RenderedTrajectory:
        found = real(renderer, trajectory)
        actions = tuple(ids[-1:] for ids in found.actions)
        return RenderedTrajectory(trajectory, found.additions, found.ask, actions)

    real = Renderer.render
    monkeypatch.setattr(Renderer, "render", empty)
    assert "losses" in fails("render", tmp_path, 20)
    assert "losses" in fails("render-tools", tmp_path, 20)


def test_a_forged_turn_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forged(renderer: Renderer, trajectory: Any) -> RenderedTrajectory:
        found = real(renderer, trajectory)
        if trajectory.instruction == "ok":  # the harmless one
            return found
        first, *later = found.additions
        additions = ((*first, renderer.end_id), *later)
        return RenderedTrajectory(trajectory, additions, found.ask, found.actions)

    real = Renderer.render
    monkeypatch.setattr(Renderer, "render", forged)
    assert "losses" in fails("render", tmp_path, 20)


def test_a_thought_that_is_dropped_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_parsers, "split_react", lambda text: ThoughtAndAction("", "look"))
    assert "losses" in fails("parse", tmp_path)


def test_markup_on_the_page_is_found() -> None:
    for page in ("<p zqattr=1>", "<zqtag>", "<a href='javascript:x'>", "<b onload=x>"):
        with pytest.raises(Loss):
            fuzz_report.Page().feed(page)
    fuzz_report.Page().feed("<p>&lt;zqtag&gt;</p>")


def test_a_message_without_an_answer_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(messages: Any) -> list[Any]:
        return []

    monkeypatch.setattr(fuzz_servers, "talk", silent)
    assert fails("serve", tmp_path, 3) == {"losses"}


def test_one_case_can_be_run_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(rng: random.Random, folder: Path) -> None:
        raise Loss(str(rng.random()))

    monkeypatch.setitem(fuzz.KINDS, "parse", (1, one))
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--only", "parse", "--case", "5"])
    with pytest.raises(Loss, match=str(random.Random("0/parse/5").random())):
        fuzz.main()
