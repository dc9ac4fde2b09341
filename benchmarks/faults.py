"""Injects faults into commands and their files, and counts cases in which data is lost.

    python benchmarks/faults.py                            the whole table
    python benchmarks/faults.py --kinds kill flip --count 20 --jsonl faults.jsonl
    python benchmarks/faults.py --only flip --case 3       repeat one case, with details

A case is survived if in the end all files equal those of an undisturbed run, refused if a command
reported the fault in one line, and lost otherwise (`fault_kinds.py`). With `--jsonl` each finished
kind is a line of that file and is not run again. Cases are determined by seed, kind and number,
except for the moments at which signals arrive. The exit code is 1 if any case was lost.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":  # before torch is imported, and only if run as a script
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import fault_damage
import fault_jvm
import fault_kinds as kinds
from fault_runs import REPORT, files, run

KINDS: dict[str, tuple[int, Callable[[random.Random, kinds.Lab, Path], kinds.Verdict]]] = {
    "kill": (100, kinds.kill),
    "kill-evaluate": (20, kinds.kill_evaluate),
    "kill-collect": (20, kinds.kill_collect),
    "kill-reflect": (30, kinds.kill_reflect),
    "signal": (60, kinds.interrupt),
    "second-signal": (20, kinds.interrupt_twice),
    "no-space": (40, kinds.no_space),
    "full-disk": (30, kinds.full_disk),
    "read-only": (40, kinds.read_only),
    "not-finite": (24, kinds.not_a_number),
    "flip": (120, fault_damage.flipped_bits),
    "lines": (60, fault_damage.changed_lines),
    "files": (100, fault_damage.spoilt_files),
    "jvm-start": (6, fault_jvm.start),
    "jvm-steps": (6, fault_jvm.steps),
}
"""Each kind's number of cases and the function that runs one."""

SHORT = {"kill": 3, "flip": 3, "signal": 2, "lines": 2, "files": 2}
"""Cases of a short run; every other kind has one."""

SHOWN = 6
VERDICTS = ("survived", "refused", "lost")


def make_lab(folder: Path) -> kinds.Lab:
    """Runs every command once without a fault."""
    commands = {}
    for name, line in kinds.LINES.items():
        own = folder / "unbroken" / name
        own.mkdir(parents=True)
        line = line.format(inputs=folder / "unbroken" / "train" / "run")
        counted = kinds.Change(10**9, lambda event, path: None)
        told = own.with_name(f"{name}.changes")

        def count(counted: kinds.Change = counted, told: Path = told) -> None:
            # The child must write its count to a file, or it is lost when the child ends.
            out = os.open(told, os.O_CREAT | os.O_WRONLY)
            counted()
            heard = sys.stdout.flush
            sys.stdout.flush = lambda: (  # type: ignore[method-assign]
                os.pwrite(out, str(counted.count).encode(), 0),
                heard(),
            )[1]

        begun = time.monotonic()
        outcome = run(line, own, count)
        if outcome.code:
            sys.exit(f"{name}: fails undisturbed: {outcome.errors}")
        seconds = time.monotonic() - begun
        changes = int(told.read_text())
        commands[name] = kinds.Unbroken(line, own, files(own), seconds, changes)
    page = folder / "unbroken" / "train"
    if (outcome := run(REPORT, page)).code:
        sys.exit(f"report: fails undisturbed: {outcome.errors}")
    return kinds.Lab(folder, commands, (page / "run" / "report.html").read_text())


def run_case(kind: str, seed: int, number: int, lab: kinds.Lab) -> tuple[str, str]:
    """The verdict on one case, run in a temporary folder."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    folder = lab.folder / f"{kind}-{number}" / "case"
    folder.mkdir(parents=True)
    try:
        return KINDS[kind][1](rng, lab, folder)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def main() -> None:
    """Runs the cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help="cases of each kind")
    parser.add_argument("--short", action="store_true", help="a few of each kind, without Java")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jsonl", type=Path, help="file of finished kinds, to resume from")
    parser.add_argument("--only", choices=KINDS, help="run one case of this kind again ...")
    parser.add_argument("--case", type=int, default=0, help="... with this number")
    args = parser.parse_args()
    chosen = [kind for kind in args.kinds if not (args.short and kind.startswith("jvm"))]
    if "full-disk" in chosen and not kinds.can_mount():
        print("full-disk: left out, since it mounts a file system, which is not allowed here")
        chosen.remove("full-disk")
    done = read_done(args.jsonl, args.seed)
    folder = TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    with folder as name:
        lab = make_lab(Path(name))
        if args.only:
            print(*run_case(args.only, args.seed, args.case, lab))
            return
        lost = 0
        print(f"{'kind':<16}{'injected':>9}" + "".join(f"{verdict:>10}" for verdict in VERDICTS))
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
            for kind in chosen:
                count = args.count or (SHORT.get(kind, 1) if args.short else KINDS[kind][0])
                row = done.get((kind, count)) or table_row(pool, kind, args.seed, count, lab)
                if args.jsonl and (kind, count) not in done:
                    with open(args.jsonl, "a") as file:
                        file.write(json.dumps(row) + "\n")
                lost += row["lost"]
                figures = "".join(f"{row[verdict]:>10}" for verdict in VERDICTS)
                print(f"{kind:<16}{row['injected']:>9}{figures}")
                for reason in row["reasons"][:SHOWN]:
                    print(f"    {reason}")
                sys.stdout.flush()
    sys.exit(1 if lost else 0)


def table_row(
    pool: ProcessPoolExecutor, kind: str, seed: int, count: int, lab: kinds.Lab
) -> dict[str, object]:
    """Runs all cases of a kind."""
    begun = time.monotonic()
    waiting = [pool.submit(run_case, kind, seed, number, lab) for number in range(count)]
    found = [future.result() for future in waiting]
    return {
        "kind": kind,
        "seed": seed,
        "injected": count,
        **{verdict: sum(one == verdict for one, _ in found) for verdict in VERDICTS},
        "reasons": [f"{n}: {reason}" for n, (one, reason) in enumerate(found) if one == "lost"],
        "seconds": round(time.monotonic() - begun, 1),
    }


def read_done(path: Path | None, seed: int) -> dict[tuple[str, int], dict[str, object]]:
    """The finished kinds of this seed, from the file."""
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["kind"], row["injected"]): row for row in rows if row["seed"] == seed}


if __name__ == "__main__":
    main()
