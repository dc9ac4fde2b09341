"""Several processes: exact shares of the work, the same results as one, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import together
from fakes import demonstrations, random_policy
from stepagent.commands.episode_journal import journal_path, read_journal
from stepagent.processes import launched, ranks
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory
from test_pipeline import assert_same, files

TESTS = Path(__file__).parent


ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}:{os.environ.get('PYTHONPATH', '')}",
    "OMP_NUM_THREADS": "1",
}
STEPAGENT = ("-m", "stepagent")
TOGETHER = str(TESTS / "together.py")
KILLS = (
    "data=0", "data=1", "base=1", "base=0", "sft=0", "sft=1", "sft-dev=0", "sft-dev=1",
    "sft_more-round1=1", "sft_more-round2=0", "implicit-round1=1", "implicit-round2=0",
    "inverse-round1=0", "inverse-round2=1", "inverse-measure=0", "inverse-measure=1",
    "sft-test=0", "inverse-test=1", "results=0", "results=1",
)  # fmt: skip
"""Each process is killed in units of each kind."""


def launcher(count: int, restarts: int = 0) -> list[str]:
    """Starts a program in so many processes on this machine."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={count}", f"--max-restarts={restarts}",
    ]  # fmt: skip


def torchrun(
    count: int, *arguments: str, restarts: int = 0, module: Sequence[str] = STEPAGENT
) -> subprocess.CompletedProcess[str]:
    """Runs a program, by default a command of StepAgent, to its end."""
    return ended([*launcher(count, restarts), *module, *arguments])


def together_in(
    count: int, *arguments: str, restarts: int = 0, by: str = "torchrun"
) -> subprocess.CompletedProcess[str]:
    """Runs a program of `together.py` to its end."""
    return ended([sys.executable, TOGETHER, by, str(count), str(restarts), *arguments])


def ended(command: Sequence[str], seconds: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)


def succeed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-3000:]


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    monkeypatch.setattr(ranks, "count", lambda: count)
    monkeypatch.setattr(ranks, "rank", lambda: rank)


@given(costs=st.lists(st.floats(0, 100), max_size=30), count=st.integers(1, 5))
def test_each_item_is_done_once_and_none_does_much_more_than_the_others(
    costs: list[float], count: int
) -> None:
    shares = []
    for rank in range(count):
        with pytest.MonkeyPatch.context() as patch:
            as_rank(patch, rank, count)
            shares.append(ranks.own(costs))
    assert sorted(item for share in shares for item in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[i] for i in share) for share in shares]
    # Longest first: no process could be spared its last item without being below the average.
    assert max(loads) <= sum(costs) / count + max(costs, default=0) + 1e-9


def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # 5 | 4, then 3 to the second (7), 3 to the first (8), 2 to the second (9).
    for rank, share in ((0, [0, 3]), (1, [1, 2, 4])):
        as_rank(monkeypatch, rank, 2)
        assert ranks.own([5, 4, 3, 3, 2]) == share
        assert ranks.every_other("abcde") == ["ace", "bd"][rank]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    for what in ("learners", "practice", "short_of_memory"):
        succeed(together_in(2, what, str(folder / what)))
    return folder


def results(both: Path, what: str) -> list[Any]:
    """What each of the processes found; each had a share of most of the work."""
    found = []
    for rank in range(2):
        result, some, none = torch.load(both / f"{what}-{rank}.pt", weights_only=False)
        assert some > 4 * none
        found.append(result)
    return found


def test_learners_find_the_same_in_two_processes_as_in_one(both: Path) -> None:
    alone = together.learners()
    for found in results(both, "learners"):
        assert found.keys() == alone.keys()
        for name, (logged, weights, facts) in alone.items():
            mine_logged, mine, mine_facts = found[name]
            assert len(logged) == len(mine_logged) > 2
            for row, other in zip(mine_logged, logged, strict=True):
                assert row == pytest.approx(other, rel=1e-12, abs=1e-12), name
            torch.testing.assert_close(mine, weights, rtol=1e-12, atol=1e-12)
            if name == "ppo":
                assert mine_facts[0] == pytest.approx(facts[0], rel=1e-12)
                torch.testing.assert_close(mine_facts[1], facts[1], rtol=1e-12, atol=1e-12)


def test_both_processes_have_the_same_weights_to_the_last_bit(both: Path) -> None:
    one, other = results(both, "learners")
    for name, (logged, weights, _) in one.items():
        assert logged == other[name][0]
        assert all(torch.equal(a, b) for a, b in zip(weights, other[name][1], strict=True))


def test_practice_and_reading_are_those_of_one_process_to_the_last_bit(both: Path) -> None:
    alone = together.practice()
    for found in results(both, "practice"):
        assert found.keys() == alone.keys()
        for name in ("inspected", "played", "collected", "detours"):
            assert found[name] == alone[name], name
        assert all(torch.equal(a, b) for a, b in zip(found["read"], alone["read"], strict=True))


def test_if_one_process_runs_out_of_memory_all_halve_their_rows(both: Path) -> None:
    one, other = results(both, "short_of_memory")
    assert one["budget"] == other["budget"] == together.BUDGET // 2
    assert one["logged"] == other["logged"] and not other["left"]
    alone = together.short_of_memory()
    for row, wanted in zip(one["logged"], alone["logged"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_a_journal_is_shared_and_takes_over_what_another_process_left(tmp_path: Path) -> None:
    out = tmp_path / "journal.jsonl"
    alone = together.journal(str(out))
    whole = journal_path(out)
    first, *_, last = whole.read_bytes().splitlines(keepends=True)
    whole.write_bytes(first)
    whole.with_name(f"{whole.name}.7").write_bytes(last + b'{"id":"cut')
    succeed(together_in(2, "journal", str(tmp_path / "journal")))
    for rank in range(2):
        found, *_ = torch.load(tmp_path / f"journal-{rank}.pt", weights_only=False)
        assert found == alone
    assert {p.name for p in tmp_path.glob("journal.jsonl*")} == {whole.name}
    assert {t.id for t in read_journal(whole)} == {t.id for t in alone if isinstance(t, Trajectory)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    succeed(together_in(2, "run", str(folder)))
    return folder


def test_a_run_by_two_processes_is_repeatable(whole: Path, tmp_path: Path) -> None:
    succeed(together_in(2, "run", str(tmp_path / "again")))
    assert_same(tmp_path / "again", whole)


def test_processes_that_are_killed_are_started_again_and_the_files_are_the_same(
    whole: Path, tmp_path: Path
) -> None:
    succeed(together_in(2, "run", str(tmp_path / "run"), *KILLS, restarts=len(KILLS)))
    assert tuple((tmp_path / "run.killed").read_text().split()) == KILLS
    assert_same(tmp_path / "run", whole)


def test_machines_that_share_only_a_storage_make_the_same_files(
    whole: Path, tmp_path: Path
) -> None:
    kills = ("implicit-round1=0", "implicit-round2=1", "results=0")
    there = tmp_path / "there"
    done = together_in(2, "stored", str(tmp_path / "run"), there.as_uri(), *kills, restarts=3)
    succeed(done)
    assert tuple((tmp_path / "run.killed").read_text().split()) == kills
    for copy in (tmp_path / "run-0", tmp_path / "run-1", there):
        assert_same(copy, whole)


def test_a_run_of_two_processes_is_resumed_by_one(whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "run"
    assert together_in(2, "run", str(cut), "implicit-round1=0").returncode != 0
    assert not (cut / "results.json").exists()
    together.run(str(cut))
    rows, wanted = (json.loads((f / "results.json").read_text()) for f in (cut, whole))
    assert [{**row, "mean": 0, "low": 0, "high": 0} for row in rows] == [
        {**row, "mean": 0, "low": 0, "high": 0} for row in wanted
    ]
    done = files(cut).keys()
    assert done == files(whole).keys()
    for unit in ("base", "sft"):
        name = f"units/{unit}/model.safetensors"
        assert files(cut)[name] == files(whole)[name]


def test_a_command_that_cannot_be_shared_says_so() -> None:
    done = torchrun(2, "tasks")
    assert done.returncode != 0
    assert "stepagent: tasks: works in one process; torchrun can start train" in done.stderr


@pytest.fixture
def reflect(tmp_path: Path) -> Callable[[str], list[str]]:
    """A command line that takes some seconds, by the name of its run folder."""
    random_policy().save(tmp_path / "policy")
    write_jsonl(tmp_path / "train.jsonl", demonstrations()[:12])
    write_jsonl(tmp_path / "held-out.jsonl", demonstrations("dev")[:4])
    return lambda out: [
        "reflect", "--method", "implicit", "--policy", str(tmp_path / "policy"),
        "--demonstrations", str(tmp_path / "train.jsonl"), "--rounds", "1", "--resume",
        "--held-out", str(tmp_path / "held-out.jsonl"), "--out", str(tmp_path / out),
        "--implicit.epochs", "8",
    ]  # fmt: skip


@contextmanager
def begun(command: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A command that has finished its first unit."""
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as agent:
        try:
            while not (folder / "units" / "round0").exists():
                assert agent.poll() is None
                time.sleep(0.05)
            yield agent
        finally:
            agent.kill()


def test_sigterm_ends_all_processes_and_the_run_is_resumed(
    tmp_path: Path, reflect: Callable[[str], list[str]]
) -> None:
    command = [*launcher(2), *STEPAGENT, *reflect("run")]
    with begun(command, tmp_path / "run") as agent:
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        agent.send_signal(signal.SIGTERM)
        _, said = agent.communicate(timeout=60)
    assert agent.returncode != 0
    assert not any(Path(f"/proc/{child}/cmdline").exists() for child in children)
    assert said.count("stopped by SIGTERM; to resume: torchrun (as before) -m stepagent") == 1
    for out in ("run", "undisturbed"):
        succeed(together_in(2, "stepagent", str(tmp_path / "pid"), *reflect(out)))
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.parametrize("victim", [0, 1])
def test_if_one_process_is_stopped_the_others_end_too_with_one_line_each(
    tmp_path: Path, reflect: Callable[[str], list[str]], victim: int
) -> None:
    pid = tmp_path / "pid"
    command = [sys.executable, TOGETHER, "torchrun", "2", "0", "stepagent", str(pid)]
    with begun([*command, *reflect("run")], tmp_path / "run") as agent:
        os.kill(int(Path(f"{pid}-{victim}.pid").read_text()), signal.SIGTERM)
        _, said = agent.communicate(timeout=60)
    assert agent.returncode != 0
    lines = sorted(line for line in said.splitlines() if line.startswith("stepagent: "))
    assert [line[:20] for line in lines] == ["stepagent: process 0", "stepagent: process 1"]
    assert lines[victim].startswith(f"stepagent: process {victim}: stopped by SIGTERM")
    assert "; to resume: torchrun (as before) -m stepagent reflect" in lines[0]
    assert "exitcode  : 75" in said
    assert "gloo" not in said and "ranks.py" not in said


def test_a_process_that_hangs_is_given_up_and_all_are_started_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with subprocess.Popen(
        [sys.executable, TOGETHER, "torchrun", "2", "9", "hang", str(mark)],
        env=ENVIRONMENT | {"SILENCE": "3"},
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stderr is not None
        try:
            for line in agent.stderr:
                if line == "process 1 has not answered for 3 seconds\n":
                    break
            else:
                pytest.fail("nobody noticed")
            os.kill(int(mark.read_text()), signal.SIGKILL)  # torchrun would wait 30 seconds
            agent.stderr.read()
            assert agent.wait(60) == 0
        finally:
            agent.kill()


def test_a_scheduler_that_sets_only_some_variables_has_started_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with ranks.joined():
        assert (launched.size(), launched.number(), ranks.count()) == (1, 0, 1)
    for name, value in (("RANK", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert (launched.size(), launched.number()) == (2, 1)
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert launched.size() == 1
