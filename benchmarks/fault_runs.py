"""Commands of the fault test: real ones, in a world that takes no time, in processes of their own.

Each command runs in a child that is forked from a process which has torch loaded already, so that
hundreds of kills take minutes. In the child all is as with `python -m stepagent`, but for a recipe,
`boxes`, the world of boxes in place of every task, and pictures that are not drawn.
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
"""Seconds after which a command counts as hanging."""

SMALL = replace(
    CONFIG,
    rounds=1,
    data=replace(CONFIG.data, sft=2, reflection=2, shared=2, dev=1, test=2),
    sft=replace(CONFIG.sft, epochs=1),
    inverse=InverseConfig(discriminator=DiscriminatorConfig(warmup_epochs=5, optimizer=FAST)),
)
REAL_TASK = ScienceWorldConfig.make_task


def _sketch(figure: Figure, file: Any, **_: Any) -> None:
    """What a picture shows, as numbers: drawing takes twice as long as all the rest of a run."""
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
"""What is done to a child before its command begins."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; of one that was killed, the signal's number below zero."""
    errors: str
    """What stands on standard error."""
    hung: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether it said in one line what is wrong."""
        is_one_line = len(self.own_lines) == 1 and not self.has_traceback
        return self.code == 2 and is_one_line and not self.hung

    @property
    def has_traceback(self) -> bool:
        """Whether a bug showed."""
        return "Traceback" in self.errors

    @property
    def own_lines(self) -> list[str]:
        """The lines that the command line itself wrote."""
        return [line for line in self.errors.splitlines() if line.startswith("stepagent: ")]

    def __str__(self) -> str:
        """Short, for tables."""
        last = self.errors.strip().splitlines()[-1:] or ["nothing said"]
        return ("hung" if self.hung else f"exit code {self.code}") + f": {last[0][:200]}"


class Command:
    """A command that runs in a folder."""

    def __init__(
        self, line: str, folder: Path, fault: Fault | None = None, *, real: bool = False
    ) -> None:
        """Starts it; `real` leaves the tasks as they are."""
        # A pipe, for a file could be what the disk has no room for.
        self._errors, errors = os.pipe()
        fcntl.fcntl(self._errors, fcntl.F_SETPIPE_SZ, 2**20)
        os.set_blocking(self._errors, False)
        reader, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become(line, folder, errors, fault, real, ready)
        os.close(errors)
        # What comes before the command is not the command's: a signal there would only test Python.
        os.close(ready)
        os.read(reader, 1)
        os.close(reader)

    def end(self, number: int) -> None:
        """Sends a signal; it may have ended already."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> Outcome:
        """Waits for its end; kills it when that does not come."""
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
        with suppress(BlockingIOError):  # a process that was left behind may hold it open
            while part := os.read(self._errors, 2**20):
                said += part
        os.close(self._errors)
        return Outcome(status, said.decode(errors="replace"), hung)


def _become(
    line: str, folder: Path, errors: int, fault: Fault | None, real: bool, ready: int
) -> None:
    """The child: the command and nothing else."""
    code = 1
    try:
        atexit._clear()  # type: ignore[attr-defined] # what the parent would do at its end
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
    """How a command ends that nobody stops from outside."""
    return Command(line, folder, fault, **options).wait()


def files(folder: Path) -> dict[str, bytes]:
    """All that a command left, by name, without what only tells the time (or is a hash of that)."""
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
    # Beside a file of the user's, nobody can tell a temporary file that was left from one in use.
    return {n: whole for n, whole in found.items() if "/" in n or not Path(n).match(TEMPORARY)}


def without(whole: bytes, *names: str) -> bytes:
    """JSON without some of its fields; what is no JSON stays as it is."""
    try:
        return json.dumps({k: v for k, v in json.loads(whole).items() if k not in names}).encode()
    except (ValueError, AttributeError):
        return whole


def difference(folder: Path, expected: dict[str, bytes]) -> str | None:
    """The first file that is not as it should be; None if all are."""
    mine = files(folder)
    for name in sorted({*mine, *expected}):
        if mine.get(name) != expected.get(name):
            state = (
                "missing" if name not in mine else "extra" if name not in expected else "changed"
            )
            return f"{name} is {state}"
    return None


def named(names: Sequence[str], outcome: Outcome) -> bool:
    """Whether one of the names stands in what a command said."""
    return any(name in line for line in outcome.own_lines for name in names)
