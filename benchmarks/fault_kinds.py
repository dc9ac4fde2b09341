"""Kinds of faults: what is done to a command or its files, and the verdict on the outcome.

Each case is one fault. It is `survived` if in the end all files equal those of an undisturbed run,
byte for byte; `refused` if a command reported in one line what is wrong with which file; and `lost`
otherwise.
"""

import errno
import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fault_runs
from fault_runs import COLLECT, EVALUATE, REFLECT, TRAIN, Command, Outcome, difference, run

Verdict = tuple[str, str]
"""`survived`, `refused` or `lost`, and the reason if it is lost."""

WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}


@dataclass(frozen=True)
class Unbroken:
    """The result of an undisturbed command."""

    line: str
    folder: Path
    expected: dict[str, bytes]
    seconds: float
    changes: int
    """Number of changes that it made to the disk."""


@dataclass(frozen=True)
class Lab:
    """The undisturbed commands that all cases share."""

    folder: Path
    commands: dict[str, Unbroken]
    """Results by the first word of the command."""
    page: str
    """HTML of the undisturbed run's report."""


class Change:
    """Acts just before the n-th change of the disk, which Python's audit hooks announce."""

    def __init__(self, number: int, act: Callable[[str, str], None]) -> None:
        """`number` counts from 1; `act` gets the audit event and the path."""
        self.number, self.act, self.count = number, act, 0

    def __call__(self) -> None:
        """Installs the audit hook, which cannot be removed."""
        here = os.getcwd()

        def hear(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                path, mode, flags = args
                if isinstance(path, int):
                    return
                changes = isinstance(mode, str) and set(mode) & set("wxa+")
                changes = changes or (mode is None and flags & (os.O_WRONLY | os.O_RDWR))
            else:
                path, changes = (args or ("",))[0], event in WRITES
            if not changes or not os.path.abspath(os.fsdecode(path)).startswith(here):
                return
            self.count += 1
            if self.count >= self.number:
                self.act(event, os.fsdecode(path))

        sys.addaudithook(hear)


def die(event: str, path: str) -> None:
    """Kills the process at once, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def go_on(lab: Lab, name: str, folder: Path) -> Verdict:
    """Runs the command again; its files must then equal those of the undisturbed run."""
    whole = lab.commands[name]
    outcome = run(whole.line, folder)
    changed = difference(folder, whole.expected)
    if not changed and (outcome.code == 0 or outcome.is_refusal):
        return "survived", ""
    if outcome.is_refusal and outcome.code:
        return "refused", str(outcome)
    return "lost", f"going on: {outcome}" if outcome.code else str(changed)


def kill(rng: random.Random, lab: Lab, folder: Path, name: str = "train") -> Verdict:
    """SIGKILL of a command, at a random time or just before a change of the disk, once or twice."""
    whole = lab.commands[name]
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.6:
            command = Command(whole.line, folder, Change(rng.randint(1, whole.changes), die))
        else:
            command = Command(whole.line, folder)
            time.sleep(rng.random() * whole.seconds)
            command.end(signal.SIGKILL)
        outcome = command.wait()
        if outcome.code not in (-signal.SIGKILL, 0) and not outcome.is_refusal:
            return "lost", str(outcome)
    metrics = folder / "run" / "metrics.jsonl"
    if metrics.exists() and rng.random() < 0.3:
        with open(metrics, "a") as file:  # a power cut in the middle of a line
            file.write('{"unit": "sf')
    return go_on(lab, name, folder)


def kill_evaluate(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """SIGKILL of `evaluate`."""
    return kill(rng, lab, folder, "evaluate")


def kill_collect(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """SIGKILL of `collect`."""
    return kill(rng, lab, folder, "collect")


def kill_reflect(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """SIGKILL of `reflect`."""
    return kill(rng, lab, folder, "reflect")


CODES = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
"""Signals that request an end, and the exit codes they lead to."""


def interrupt(rng: random.Random, lab: Lab, folder: Path, times: int = 1) -> Verdict:
    """A signal that requests an end: the command must end within 5 s and print how to resume."""
    name = rng.choice(("train", "train", "evaluate", "collect", "reflect"))
    whole, number = lab.commands[name], rng.choice(list(CODES))
    command = Command(whole.line, folder)
    time.sleep(rng.uniform(0.05, 0.9) * whole.seconds)
    for _ in range(times):
        command.end(number)
        time.sleep(0.05)
    outcome = command.wait(6)
    if outcome.code != 0:
        expected = {CODES[number], 128 + number, -number} if times > 1 else {CODES[number]}
        if outcome.hung or outcome.code not in expected or outcome.has_traceback:
            return "lost", f"{name}, {number.name}: {outcome}"
        if times == 1 and not fault_runs.named([f"to resume: stepagent {name}"], outcome):
            return "lost", f"{name}, {number.name}: does not say how to resume: {outcome}"
    return go_on(lab, name, folder)


def interrupt_twice(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """The same signal twice, as an impatient user sends it."""
    return interrupt(rng, lab, folder, times=2)


def stopped_by_disk(lab: Lab, folder: Path, name: str, outcome: Outcome) -> Verdict:
    """Checks that a disk error was reported in one line and that the command then resumes."""
    if outcome.code != 0 and not outcome.is_refusal:
        return "lost", f"{name}: {outcome}"
    return go_on(lab, name, folder)


def no_space(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A full disk (simulated), or a limit on file sizes, from some point on."""
    name = rng.choice(("train", "train", "evaluate", "collect", "reflect"))
    whole = lab.commands[name]

    def full(event: str, path: str) -> None:
        if event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def small_files() -> None:
        limit = rng.choice((0, 100, 1000, 10_000, 40_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    fault = rng.choice((Change(rng.randint(1, whole.changes), full), small_files))
    return stopped_by_disk(lab, folder, name, run(whole.line, folder, fault))


def full_disk(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A real file system that runs full and is then enlarged."""
    name = rng.choice(("train", "reflect", "evaluate", "collect"))
    size = sum(len(whole) for whole in lab.commands[name].expected.values())
    kilobytes = max(4, int(rng.random() * size / 1024))
    with mounted(folder, f"size={kilobytes}k"):
        outcome = run(lab.commands[name].line, folder)
        os.system(f"mount -o remount,size=64m '{folder}'")
        return stopped_by_disk(lab, folder, name, outcome)


def read_only(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A disk that becomes read-only at some point."""
    name = rng.choice(("train", "train", "evaluate", "collect", "reflect"))
    whole, number = lab.commands[name], rng.choice((errno.EROFS, errno.EACCES, errno.EIO))

    def refuse(event: str, path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    outcome = run(whole.line, folder, Change(rng.randint(1, whole.changes), refuse))
    return stopped_by_disk(lab, folder, name, outcome)


def can_mount() -> bool:
    """Whether file systems can be mounted, as root can outside of most containers."""
    with TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), "size=4k"):
                return True
        except PermissionError:
            return False


class mounted:
    """Mounts a small file system on a folder while the block runs."""

    def __init__(self, folder: Path, options: str) -> None:
        """Mounts it; needs root."""
        self.folder = folder
        if os.system(f"mount -t tmpfs -o {options} tmpfs '{folder}' 2>/dev/null"):
            raise PermissionError("mount: not allowed here")

    def __enter__(self) -> None:
        """Does nothing; it is mounted already."""

    def __exit__(self, *_: object) -> None:
        """Unmounts it."""
        os.system(f"umount -l '{self.folder}'")


def not_a_number(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A loss or gradient that is not finite, once or always: such weights must not be saved."""
    import torch

    backward, first = torch.Tensor.backward, rng.randint(1, 25)
    times, value = rng.choice((1, 1, 10**9)), rng.choice((math.nan, math.inf))
    count = 0

    def broken(self: Any, *args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        is_hit = first <= count < first + times
        backward(self * value if is_hit else self, *args, **options)

    def patch() -> None:
        torch.Tensor.backward = broken

    rate = rng.choice(("", "", " --sft.optimizer.learning-rate 1e20"))
    fault = None if rate else patch
    outcome = run(TRAIN + rate, folder, fault)
    if outcome.has_traceback or outcome.hung:
        return "lost", str(outcome)
    if bad := not_finite(folder):
        return "lost", f"{bad} is not finite; {outcome}"
    if outcome.is_refusal:
        again = run(TRAIN + rate, folder)
        if again.code not in (0, 2) or again.has_traceback or not_finite(folder):
            return "lost", f"going on: {again}"
        return "refused", ""
    return ("lost", str(outcome)) if outcome.code else ("survived", "")


def not_finite(folder: Path) -> str | None:
    """The first weights file on the disk with NaN or infinity, if any."""
    from safetensors.torch import load_file

    for path in folder.rglob("*.safetensors"):
        if not all(bool(tensor.isfinite().all()) for tensor in load_file(path).values()):
            return str(path.relative_to(folder))
    return None


LINES = {"train": TRAIN, "evaluate": EVALUATE, "collect": COLLECT, "reflect": REFLECT}
