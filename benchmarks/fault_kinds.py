"""The faults: what is done to a command or to its files, and what must come of it.

A case is one fault. It is `survived` if in the end all files are those of an unbroken run, byte for
byte; `refused` if a command said in one line what is wrong, and with which file; anything else is
`lost`.
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
"""`survived`, `refused` or `lost`, and why it is lost."""

WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}


@dataclass(frozen=True)
class Unbroken:
    """A command that nothing disturbed."""

    line: str
    folder: Path
    expected: dict[str, bytes]
    seconds: float
    changes: int
    """How often it changed something on the disk."""


@dataclass(frozen=True)
class Lab:
    """What all cases share."""

    folder: Path
    commands: dict[str, Unbroken]
    """By the first word of the command."""
    page: str
    """The report of the unbroken run."""


class Change:
    """Does something at the n-th change of the disk: Python tells of each before it is made."""

    def __init__(self, number: int, act: Callable[[str, str], None]) -> None:
        """Counts from 1; `act` is told what is about to happen, and to what."""
        self.number, self.act, self.count = number, act, 0

    def __call__(self) -> None:
        """Begins to listen; never ends."""
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
    """As if the power went."""
    os.kill(os.getpid(), signal.SIGKILL)


def go_on(lab: Lab, name: str, folder: Path) -> Verdict:
    """The same command once more; then all has to be as if nothing had happened."""
    whole = lab.commands[name]
    outcome = run(whole.line, folder)
    changed = difference(folder, whole.expected)
    if not changed and (outcome.code == 0 or outcome.is_refusal):
        return "survived", ""
    if outcome.is_refusal and outcome.code:
        return "refused", str(outcome)
    return "lost", f"going on: {outcome}" if outcome.code else str(changed)


def kill(rng: random.Random, lab: Lab, folder: Path, name: str = "train") -> Verdict:
    """SIGKILL, at any time or just before the disk changes, once or twice."""
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
        with open(metrics, "a") as file:  # the power went within a line
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
"""Signals that ask for an end, and the exit code that each leads to."""


def interrupt(rng: random.Random, lab: Lab, folder: Path, times: int = 1) -> Verdict:
    """A signal that asks for an end: within 5 s, with a line that says how to go on."""
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
        if times == 1 and not fault_runs.named([f"to go on: stepagent {name}"], outcome):
            return "lost", f"{name}, {number.name}: does not say how to go on: {outcome}"
    return go_on(lab, name, folder)


def interrupt_twice(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """The same signal once more, from somebody in a hurry."""
    return interrupt(rng, lab, folder, times=2)


def stopped_by_disk(lab: Lab, folder: Path, name: str, outcome: Outcome) -> Verdict:
    """After an error of the disk: it was said in one line, and when it is mended all goes on."""
    if outcome.code != 0 and not outcome.is_refusal:
        return "lost", f"{name}: {outcome}"
    return go_on(lab, name, folder)


def no_space(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A disk without space, or a limit on the size of files, from some point on."""
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
    """A real file system that runs full, and is then made larger."""
    name = rng.choice(("train", "reflect", "evaluate", "collect"))
    size = sum(len(whole) for whole in lab.commands[name].expected.values())
    kilobytes = max(4, int(rng.random() * size / 1024))
    with mounted(folder, f"size={kilobytes}k"):
        outcome = run(lab.commands[name].line, folder)
        os.system(f"mount -o remount,size=64m '{folder}'")
        return stopped_by_disk(lab, folder, name, outcome)


def read_only(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A disk that can only be read, from some point on."""
    name = rng.choice(("train", "train", "evaluate", "collect", "reflect"))
    whole, number = lab.commands[name], rng.choice((errno.EROFS, errno.EACCES, errno.EIO))

    def refuse(event: str, path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    outcome = run(whole.line, folder, Change(rng.randint(1, whole.changes), refuse))
    return stopped_by_disk(lab, folder, name, outcome)


def can_mount() -> bool:
    """Whether file systems can be mounted here, as root can outside of most containers."""
    with TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), "size=4k"):
                return True
        except PermissionError:
            return False


class mounted:
    """A folder as a file system of its own, while the block runs."""

    def __init__(self, folder: Path, options: str) -> None:
        """Mounts it; needs root."""
        self.folder = folder
        if os.system(f"mount -t tmpfs -o {options} tmpfs '{folder}' 2>/dev/null"):
            raise PermissionError("mount: not allowed here")

    def __enter__(self) -> None:
        """Nothing more."""

    def __exit__(self, *_: object) -> None:
        """Takes it away."""
        os.system(f"umount -l '{self.folder}'")


def not_a_number(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A loss or a gradient that is not finite, once or always: no such weights are kept."""
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
    """Weights on the disk that are no numbers."""
    from safetensors.torch import load_file

    for path in folder.rglob("*.safetensors"):
        if not all(bool(tensor.isfinite().all()) for tensor in load_file(path).values()):
            return str(path.relative_to(folder))
    return None


LINES = {"train": TRAIN, "evaluate": EVALUATE, "collect": COLLECT, "reflect": REFLECT}
