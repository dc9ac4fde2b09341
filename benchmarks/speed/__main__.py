"""Asks the questions, prints their tables and keeps one JSON line for each answer."""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stepagent.files.cache import cache_folder

from . import generate, gpu, growth, precision, rollouts, stages, trl
from .material import SEED, Setup, prepare
from .measuring import Row, be_quiet, bfloat16_units, machine, show

QUESTIONS: dict[str, tuple[str, Callable[[Setup], Iterator[Row]]]] = {
    module.__name__.rpartition(".")[2]: (module.TITLE, module.answer)
    for module in (trl, generate, rollouts, growth, stages, precision, gpu)
}
BUILD = Path("build")


def commit() -> str:
    """The code that is measured; ends in -dirty if it has changed since the commit."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def answered(file: Path, code: str) -> set[str]:
    """The questions that the file answers for this code."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {found["question"] for found in map(json.loads, lines) if found["commit"] == code}


def main() -> None:
    """Asks what the file does not answer yet."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument(
        "--model", type=Path, help="folder of the real model (default: what `make smollm2` gets)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--out", type=Path, default=BUILD / "bench.jsonl", help="gets JSON lines")
    options = parser.parse_args()
    if unknown := set(options.questions) - QUESTIONS.keys():
        parser.error(f"no such question: {', '.join(sorted(unknown))}")
    be_quiet()
    real = options.model or cache_folder() / "models" / "SmolLM2-135M-Instruct"
    has_units = bfloat16_units() != "neither"
    precisions = ("float32", "bfloat16") if has_units else ("float32",)
    setup = prepare(BUILD / "bench", real, precisions, options.repeats)
    code, facts = commit(), machine()
    print(f"{code}: {facts}; seed {SEED}; {options.repeats} repeats")
    done = answered(options.out, code)
    for name in options.questions or QUESTIONS:
        title, ask = QUESTIONS[name]
        if name in done:
            print(f"\n{title}\nalready in {options.out}")
            continue
        start = time.perf_counter()
        rows = show(title, ask(setup))
        line = {
            "question": name,
            "commit": code,
            "machine": facts,
            "seed": SEED,
            "seconds": round(time.perf_counter() - start),
            "rows": rows,
        }
        options.out.parent.mkdir(exist_ok=True)
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
