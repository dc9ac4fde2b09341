"""Runs real commands for the fault test, each in its own process, with a fast toy environment.

Each command runs in a child forked from a process that has torch loaded, so that hundreds of kills
take only minutes. The child behaves like `python -m stepagent`, except for an added recipe,
`boxes`, the world of boxes in place of every task, and plots that are not drawn.
"""

import atexit
import fcntl
import json
import os
import resource
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from fakes import BoxWorld
from stepagent import cli
from stepagent.algorithms.discriminator import DiscriminatorConfig
from stepagent.commands import collect, evaluate, reflect, report, train  # noqa: F401
from stepagent.experiment.recipes import RECIPES
from stepagent.files.atomic import TEMPORARY
from stepagent.learners.inverse import InverseConfig
from stepagent.tasks.scienceworld.task import ScienceWorldConfig
from test_pipeline import CONFIG, FAST

PATIENCE = 120.0
"""Seconds after which a command is considered hung."""

SMALL = replace(
    CONFIG,
    rounds=1,
    data=replace(CONFIG.data, sft=2, reflection=2, shared=2, dev=1, test=2),
    sft=replace(CONFIG.sft, epochs=1),
    inverse=InverseConfig(discriminator=DiscriminatorConfig(warmup_epochs=5, optimizer=FAST)),
)
REAL_TASK = ScienceWorldConfig.make_task


def _sketch(figure: Figure, file: Any, **_: Any) -> None:
    """Writes a plot's data instead of drawing it, which would take two thirds of the time."""
    lines = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    bars = [
        str(bar.get_data()) if isinstance(bar, StepPatch) else str(bar)
        for axes in figure.axes
        for bar in axes.patches
    ]
    file.write(f"<svg><!-- {lines} {bars} --></svg>")


TRAIN = "train boxes --out run --resume"
EVALUATE = (
    "evaluate scienceworld --policy {inputs}/units/sft --num-per-group 3 --out episodes.jsonl"
)
COLLECT = "collect scienceworld --num-per-group 8 --out demonstrations.jsonl"
REFLECT = (
    "reflect --method implicit --policy {inputs}/units/sft --out run --resume "
    "--demonstrations {inputs}/demonstrations.jsonl "
    "--held-out {inputs}/practice/demonstrations-dev.jsonl"
)
REPORT = "report run"

Fault = Callable[[], None]
"""A function that the child calls before its command starts."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; minus the signal's number if it was killed."""
    errors: str
    """Its standard error."""
    hung: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether it reported an error in one line, with exit code 2."""
        is_one_line = len(self.own_lines) == 1 and not self.has_traceback
        return self.code == 2 and is_one_line and not self.hung

    @property
    def has_traceback(self) -> bool:
        """Whether it printed a traceback, which is a bug."""
        return "Traceback" in self.errors

    @property
    def own_lines(self) -> list[str]:
        """The lines that `stepagent.cli` itself printed."""
        return [line for line in self.errors.splitlines() if line.startswith("stepagent: ")]

    def __str__(self) -> str:
        """A short form for tables."""
        last = self.errors.strip().splitlines()[-1:] or ["nothing said"]
        return ("hung" if self.hung else f"exit code {self.code}") + f": {last[0][:200]}"


class Command:
    """A command that is running in a folder."""

    def __init__(
        self, line: str, folder: Path, fault: Fault | None = None, *, real: bool = False
    ) -> None:
        """Starts it; `real` keeps the real tasks."""
        # A pipe rather than a file, since the disk may be full.
        self._errors, errors = os.pipe()
        fcntl.fcntl(self._errors, fcntl.F_SETPIPE_SZ, 2**20)
        os.set_blocking(self._errors, False)
        reader, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become(line, folder, errors, fault, real, ready)
        os.close(errors)
        # Waits until the command itself starts: an earlier signal would only test Python.
        os.close(ready)
        os.read(reader, 1)
        os.close(reader)

    def end(self, number: int) -> None:
        """Sends a signal; does nothing if the command has ended."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> Outcome:
        """Waits for its end; kills it after `seconds`."""
        deadline, status, hung = time.monotonic() + seconds, None, False
        while status is None:
            found, code = os.waitpid(self.pid, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() > deadline and not hung:
                hung = True
                os.killpg(self.pid, signal.SIGKILL)
            else:
                time.sleep(0.005)
        said = b""
        with suppress(BlockingIOError):  # an orphaned process may hold it open
            while part := os.read(self._errors, 2**20):
                said += part
        os.close(self._errors)
        return Outcome(status, said.decode(errors="replace"), hung)


def _become(
    line: str, folder: Path, errors: int, fault: Fault | None, real: bool, ready: int
) -> None:
    """Runs the command in the child."""
    code = 1
    try:
        atexit._clear()  # type: ignore[attr-defined] # the parent's own exit handlers
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        torch.set_num_threads(1)
        RECIPES["boxes"] = SMALL
        Figure.savefig = _sketch  # type: ignore[method-assign]
        ScienceWorldConfig.make_task = REAL_TASK if real else lambda config: BoxWorld()  # type: ignore
        if fault:
            fault()
        sys.argv = ["stepagent", *shlex.split(line)]
        os.close(ready)
        cli.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        if real:
            atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(line: str, folder: Path, fault: Fault | None = None, **options: Any) -> Outcome:
    """Runs a command to its end."""
    return Command(line, folder, fault, **options).wait()


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files that a command wrote, without times (and hashes of them)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == "report.html" or path.suffix == ".lock":
            continue
        whole = path.read_bytes()
        if path.name == "config.json" and path.parent.name == "run":
            whole = without(whole, "created", "sha256")
        elif path.name == "metrics.jsonl":
            rows = [without(row, "seconds") for row in whole.splitlines()]
            whole = b"\n".join(sorted(rows))
        found[str(path.relative_to(folder))] = whole
    found.pop("run/.lock", None)
    # Next to a user's file, a left-over temporary file looks like one in use.
    return {n: whole for n, whole in found.items() if "/" in n or not Path(n).match(TEMPORARY)}


def without(whole: bytes, *names: str) -> bytes:
    """JSON without the named fields; other data is returned unchanged."""
    try:
        return json.dumps({k: v for k, v in json.loads(whole).items() if k not in names}).encode()
    except (ValueError, AttributeError):
        return whole


def difference(folder: Path, expected: dict[str, bytes]) -> str | None:
    """Names the first file that differs from the expected ones; None if none does."""
    mine = files(folder)
    for name in sorted({*mine, *expected}):
        if mine.get(name) != expected.get(name):
            state = (
                "missing" if name not in mine else "extra" if name not in expected else "changed"
            )
            return f"{name} is {state}"
    return None


def named(names: Sequence[str], outcome: Outcome) -> bool:
    """Whether the command's own output contains one of the names."""
    return any(name in line for line in outcome.own_lines for name in names)
