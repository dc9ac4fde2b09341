"""Fuzz test of everything that reads text from outside.

    python benchmarks/fuzz.py                                  100,000 cases, all kinds
    python benchmarks/fuzz.py --kinds render import --count 1000
    python benchmarks/fuzz.py --only render --case 17          repeat one case, with its traceback

A case passes if the input is read without loss, or rejected by one of the project's own errors in
one printable line. Failures are a crash (another error, or a message of several lines), a hang
(more than a second of computing, or twenty of waiting) and a loss (a part of the input is missing
from the result, or something was added). Cases are determined by seed, kind and number. Prints a
table, the first failures of each kind, and one line of JSON; the exit code is 1 if a case failed.
"""

import argparse
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import fuzz_data
import fuzz_parsers
import fuzz_readers
import fuzz_renderer
import fuzz_report
import fuzz_servers
from fuzz_inputs import Loss

KINDS: dict[str, tuple[int, Callable[[random.Random, Path], None]]] = {
    "read": (12, fuzz_readers.read),
    "import": (20, fuzz_readers.imported),
    "roundtrip": (10, fuzz_readers.roundtrip),
    "render": (18, fuzz_renderer.render),
    "render-tools": (8, fuzz_renderer.render_tools),
    "parse": (14, fuzz_parsers.parse),
    "data": (4, fuzz_data.data),
    "report": (1, fuzz_report.report),
    "serve": (4, fuzz_servers.serve),
    "openenv": (3, fuzz_servers.openenv),
    "agentgym": (3, fuzz_servers.agentgym),
    "chat": (3, fuzz_servers.chat),
}
"""Each kind's share of the cases in percent, and the function that runs one."""

CPU_SECONDS, WALL_SECONDS = 1.0, 20.0
MAX_MESSAGE = 5000
BATCH = 50
COUNTS = ("cases", "refused", "crashes", "hangs", "losses")
SINGULAR = {"crashes": "crash", "hangs": "hang", "losses": "loss"}
SHOWN = 5


class Hang(BaseException):
    """A case took too long; not an `Exception`, so that no handler catches it."""


@dataclass
class Tally:
    """Outcomes of the cases of a kind."""

    cases: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    losses: int = 0
    failures: list[str] = field(default_factory=list)
    """Descriptions of the first failures."""

    def add(self, other: "Tally") -> None:
        """Adds another tally to this one."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures += other.failures


def is_own(error: BaseException) -> bool:
    """Whether an error is one that the project raises for users."""
    return type(error).__module__.startswith("stepagent.") and isinstance(
        error, ValueError | RuntimeError
    )


def run_case(kind: str, seed: int, number: int, folder: Path) -> tuple[str, str] | None:
    """The outcome of a case (one of `COUNTS`) and details; None if it passed without an error."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        KINDS[kind][1](rng, folder)
    except Hang as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "hangs", f"in {place.name}, {place.filename}:{place.lineno}"
    except Loss as error:
        return "losses", str(error)
    except BaseException as error:  # a panic in a Rust library is not an Exception
        signal.setitimer(signal.ITIMER_PROF, 0)
        message = str(error)
        if not is_own(error):
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            return "crashes", f"{type(error).__name__} at {where}: {message[:200]!r}"
        if not message.isprintable() or not message or len(message) > MAX_MESSAGE:
            return "crashes", f"{type(error).__name__} is not one line: {message[:200]!r}"
        return "refused", ""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def run_batch(kind: str, seed: int, first: int, count: int) -> tuple[str, Tally]:
    """Runs `count` cases from number `first` on."""
    tally = Tally()
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for number in range(first, first + count):
            tally.cases += 1
            if found := run_case(kind, seed, number, Path(folder)):
                setattr(tally, found[0], getattr(tally, found[0]) + 1)
                if found[0] != "refused":
                    tally.failures.append(f"{kind} {number}: {SINGULAR[found[0]]}: {found[1]}")
    return kind, tally


def prepare_timers() -> None:
    """Installs timers that raise `Hang` if a case takes too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)


def prepare() -> None:
    """Prepares a worker process: timers, and no output."""
    prepare_timers()
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust prints panics there


def batches(kinds: list[str], total: int | None, count: int) -> Iterator[tuple[str, int, int]]:
    """Kind, first case and size of each batch; a total is divided among kinds by weight."""
    weights = sum(KINDS[kind][0] for kind in kinds)
    for kind in kinds:
        wanted = count if total is None else -(-total * KINDS[kind][0] // weights)
        for first in range(0, wanted, BATCH):
            yield kind, first, min(BATCH, wanted - first)


def fuzz(kinds: list[str], total: int | None, count: int, seed: int) -> dict[str, Tally]:
    """Runs all cases on all cores."""
    tallies = {kind: Tally() for kind in kinds}
    context = get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=prepare) as pool:
        waiting = [
            pool.submit(run_batch, kind, seed, first, size)
            for kind, first, size in batches(kinds, total, count)
        ]
        for done in waiting:
            kind, tally = done.result()
            tallies[kind].add(tally)
    return tallies


def main() -> None:
    """Runs the cases and prints their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--total", type=int, default=100_000, help="cases of all kinds together")
    parser.add_argument("--count", type=int, help="cases of each kind, in place of --total")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=SHOWN, help="failures shown for each kind")
    parser.add_argument("--only", choices=KINDS, help="run one case of this kind again ...")
    parser.add_argument("--case", type=int, help="... with this number")
    args = parser.parse_args()
    if args.only:
        with TemporaryDirectory() as folder:
            KINDS[args.only][1](random.Random(f"{args.seed}/{args.only}/{args.case}"), Path(folder))
        return
    begun = time.monotonic()
    total = None if args.count else args.total
    tallies = fuzz(args.kinds, total, args.count or 0, args.seed)
    print(f"{'kind':<14}" + "".join(f"{name:>9}" for name in COUNTS))
    for kind, tally in tallies.items():
        print(
            f"{kind:<14}" + "".join(f"{getattr(tally, name):>9}" for name in COUNTS),
            *(f"\n  {failure}" for failure in tally.failures[: args.shown]),
            sep="",
        )
    sums = {name: sum(getattr(tally, name) for tally in tallies.values()) for name in COUNTS}
    took = round(time.monotonic() - begun, 1)
    print(json.dumps({"seed": args.seed, **sums, "seconds": took}))
    sys.exit(any(sums[name] for name in ("crashes", "hangs", "losses")))


if __name__ == "__main__":
    main()
