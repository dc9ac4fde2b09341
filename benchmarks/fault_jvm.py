"""Fault kinds of ScienceWorld's engine, a Java process that is killed or suspended.

They use the real engine and a real `collect` of a few items. A suspended process (SIGSTOP) does not
answer and does not die, like one on a machine that swaps; the engine's time limits are set short,
so that it is given up within seconds.
"""

import os
import random
import signal
import time
from pathlib import Path

from fault_kinds import Lab, Unbroken, Verdict
from fault_runs import Command, difference, files, run

COLLECT = (
    "collect scienceworld --task-types find-animal --num-per-group 3 --num-parallel 2 "
    "--engine.timeout-seconds 6 --engine.start-timeout-seconds 12 --out demonstrations.jsonl"
)


def unbroken(lab: Lab) -> Unbroken:
    """The result of the undisturbed command, run once by the first process that needs it."""
    folder = lab.folder / "unbroken" / "java"
    done, begun = folder.with_name("java.seconds"), time.monotonic()
    try:
        folder.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.1)
    else:
        outcome = run(COLLECT, folder, real=True)
        done.write_text(str(time.monotonic() - begun) if outcome.code == 0 else f"0 {outcome}")
    seconds, _, fault = done.read_text().partition(" ")
    if fault:
        raise RuntimeError(f"fails undisturbed: {fault}")
    return Unbroken(COLLECT, folder, files(folder), float(seconds), 0)


def java_of(command: Command, patience: float = 60.0) -> int | None:
    """Waits for the Java process that a command starts; None if the command ends first."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    name, _, rest = (entry / "stat").read_text().rpartition(") ")
                except OSError:
                    continue
                parents[int(entry.name)] = (int(rest.split()[1]), name.partition("(")[2])
        for pid, (parent, name) in parents.items():
            while name == "java" and parent > 1:
                if parent == command.pid:
                    return pid
                parent = parents.get(parent, (0, ""))[0]
        if command.pid not in parents:
            return None
        time.sleep(0.02)
    return None


def start(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """Kills or suspends the engine while it starts."""
    unbroken(lab)
    return _hit(rng, lab, folder, rng.random())


def steps(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """Kills or suspends the engine while it plays."""
    return _hit(rng, lab, folder, rng.uniform(0.3, 0.9) * unbroken(lab).seconds)


def _hit(rng: random.Random, lab: Lab, folder: Path, delay: float) -> Verdict:
    whole, number = unbroken(lab), rng.choice((signal.SIGKILL, signal.SIGSTOP))
    command = Command(COLLECT, folder, real=True)
    java = java_of(command)
    if java is None:
        command.end(signal.SIGKILL)
        return "lost", f"no Java process: {command.wait()}"
    time.sleep(delay)
    _send(java, number)
    outcome = command.wait()
    if outcome.code != 0 and not outcome.is_refusal:
        verdict = "lost", f"{number.name} after {delay:.1f} s: {outcome}"
    else:
        if outcome.code:
            outcome = run(COLLECT, folder, real=True)
        changed = difference(folder, whole.expected)
        verdict = ("lost", f"{number.name}: {changed}; {outcome}") if changed else ("survived", "")
    if _send(java, signal.SIGKILL) and verdict[0] != "lost":
        return "lost", f"{number.name}: the Java process is still there at the end"
    return verdict


def _send(pid: int, number: int) -> bool:
    """Sends a signal; returns whether the process was alive (a zombie is not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        os.kill(pid, number)
    except (OSError, IndexError):
        return False
    return state != "Z"
