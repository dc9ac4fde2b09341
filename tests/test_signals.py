"""Signals end a command and its children in time, wherever it is, and it prints how to resume."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes import BoxWorld, hear_ctrl_c
from stepagent import cli
from stepagent.commands import collect
from stepagent.types import Trajectory

BOXES = """
import sys, time
sys.path.insert(0, {tests!r})
from fakes import BoxWorld
from stepagent import cli
from stepagent.commands import collect

class SlowWorld(BoxWorld):
    def expert(self, item):
        time.sleep({seconds})
        print("played", item, flush=True)
        return super().expert(item)

collect.open_task = lambda _: SlowWorld()
cli.main(sys.argv[1:])
"""

STUCK = """
import hashlib, sys, types
from stepagent import cli
from stepagent.processes import signals

def main(args):
    signals.GRACE_SECONDS = GRACE
    print("played", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # C code that handles no signals

sys.modules["stepagent.commands.stuck"] = types.SimpleNamespace(main=main)
for command in ("inspect", "evaluate", "train"):
    cli.COMMANDS[command] = ("stuck", "")
cli.main(sys.argv[1:])
"""


def boxes(seconds: float) -> str:
    return BOXES.format(tests=str(Path(__file__).parent), seconds=seconds)


@contextmanager
def begun(
    code: str, *args: object, before: Callable[[], object] = hear_ctrl_c
) -> Iterator["subprocess.Popen[str]"]:
    """Runs a script; yields it once it has printed a word, and kills it in the end."""
    running = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("played")
        yield running
    finally:
        running.kill()
        running.communicate()


def test_a_stopped_command_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    args = ["collect", "scienceworld", "--num-per-group", "6", "--num-parallel", "2"]
    args += ["--out", str(out)]
    with begun(boxes(0.3), *args) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.stdout.readline()
        running.terminate()
        _, error = running.communicate(timeout=60)
    assert running.returncode == 75
    assert error == f"stepagent: stopped by SIGTERM; to resume: stepagent {' '.join(args)}\n"
    kept = Path(f"{out}.episodes").read_text().count("\n")
    assert 1 <= kept < 12
    played: list[str] = []

    class Counting(BoxWorld):
        def expert(self, item: str) -> Trajectory:
            played.append(item)
            return super().expert(item)

    monkeypatch.setattr(collect, "open_task", lambda _: Counting())
    cli.main(args)
    assert len(played) == 12 - kept
    cli.main([*args[:-1], str(whole)])
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


@pytest.mark.parametrize(
    ("command", "number", "code", "told"),
    [
        ("inspect", signal.SIGTERM, 143, " by SIGTERM"),
        ("inspect", signal.SIGHUP, 129, " by SIGHUP"),
        ("evaluate", signal.SIGTERM, 75, " by SIGTERM; to resume: stepagent evaluate --out 'o o'"),
        ("train", signal.SIGHUP, 75, " by SIGHUP; to resume: stepagent train --out 'o o' --resume"),
        ("train", signal.SIGINT, 130, "; to resume: stepagent train --out 'o o' --resume"),
    ],
)
def test_c_code_that_ignores_signals_is_ended_too(
    command: str, number: int, code: int, told: str
) -> None:
    with begun(STUCK.replace("GRACE\n", "0.5\n"), command, "--out", "o o") as running:
        running.send_signal(number)
        _, error = running.communicate(timeout=60)
    assert (running.returncode, error) == (code, f"stepagent: stopped{told}\n")


def test_a_second_signal_ends_at_once() -> None:
    with begun(STUCK.replace("GRACE\n", "1000\n"), "evaluate") as running:
        time.sleep(0.5)  # until it is in the C code
        running.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(1)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 75


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    code = STUCK.replace("2**31 - 1", "10**6").replace("GRACE\n", "0.1\n")
    with begun(code, "evaluate", before=nohup) as running:
        running.send_signal(signal.SIGHUP)
        assert running.wait(60) == 0


JVM = """
import os, signal, sys, threading
from stepagent import cli
from stepagent.tasks.scienceworld.simulator import Simulator, SimulatorPool

at, file = sys.argv.pop(1), sys.argv.pop(1)

def stop(java):
    os.kill(java.process.pid, signal.SIGSTOP)
    open(file, "w").write(str(java.process.pid))
    print("played", flush=True)

if at == "start":
    running = SimulatorPool._running
    def stopped(self):
        java = running(self)
        stop(java)
        return java
    SimulatorPool._running = stopped
else:
    load = Simulator.gold_path
    def stopped(self, *arguments):
        stop(self.java)
        return load(self, *arguments)
    Simulator.gold_path = stopped
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("at", ["start", "episode"])
def test_a_suspended_jvm_delays_no_signal_and_ends_too(at: str, tmp_path: Path) -> None:
    args = ["collect", "scienceworld", "--task-types", "boil", "--out", tmp_path / "out.jsonl"]
    with begun(JVM, at, tmp_path / "pid", *args) as running:
        java = int((tmp_path / "pid").read_text())
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert error.splitlines()[-1].startswith("stepagent: stopped; to resume: stepagent collect ")
    for _ in range(100):
        if not Path(f"/proc/{java}").exists():
            break
        time.sleep(0.1)
    else:
        os.kill(java, signal.SIGKILL)
        pytest.fail("the JVM is still there")
