"""Collects results of many runs in learning.jsonl, and writes the tables of README.md and docs.

    python benchmarks/learning.py add runs/results/*    add the rows of finished runs
    python benchmarks/learning.py write                 write the tables

A row is {recipe, task, policy, method, seed, split, metric, value, episodes, env_steps,
train_tokens}. `env_steps` and `train_tokens` are the environment steps and training tokens of the
method's rounds, without the novice; tokens of sampling and reference policies do not count. The
metric `best_round` is the round that was tested, the best one on dev; 0 is the novice. If settings
differ from the recipe's, they follow the method's name. docs/results-protocol.md describes how the
runs were made.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from learning_tables import Row, filled

from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run import to_json
from stepagent.experiment.run_folder import (
    CHOSEN_FILE,
    CONFIG,
    METRICS,
    RESULTS_JSON,
    tested_unit,
    unit_file,
)
from stepagent.experiment.run_json import read_json, read_rows
from stepagent.files.atomic import atomic_write
from stepagent.files.locks import lock
from stepagent.methods import METHODS, NOVICE, REFLECTIONS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learning.jsonl"
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
KEY = ("recipe", "task", "policy", "method", "seed", "split", "metric")
PROMPTED = {name for name, method in METHODS.items() if method.kind == "prompt"}
PRACTISING = {*REFLECTIONS, "step_dpo", "dagger"}
NOT_A_LEARNERS = {"model", "seed", "methods", "prompting.methods"}
LEARNERS = {name for name, method in METHODS.items() if method.has_rounds}


def rows_of(run: Path) -> Iterator[Row]:
    """The rows of a finished run."""
    about = read_json(run / CONFIG)
    log = [*read_rows(run / METRICS).rows.values()]
    changes = dict(_changes(to_json(RECIPES[about["recipe"]]), about["config"]))
    model = about["config"]["model"]
    common = {
        "recipe": about["recipe"],
        "task": about["protocol"]["task"],
        "policy": "tiny" if isinstance(model, dict) else Path(model).name,
        "seed": about["seed"],
    }
    for result in read_json(run / RESULTS_JSON):
        method = result["method"]
        # The novice's cost is excluded, and so is the measurement after the last round.
        own = [row for row in log if row["stage"] == method]
        rounds = [r for r in own if 0 < r["round"] <= about["config"]["rounds"]]
        taken = {
            "env_steps": sum(row.get("env_steps", 0) for row in rounds),
            "train_tokens": int(sum(row.get("tokens", 0) for row in rounds)),
        }
        known = {**common, "method": _label(method, changes), "episodes": result["n"], **taken}
        yield {**known, "split": "test", "metric": result["metric"], "value": result["mean"]}
        if result["metric"] == "score" and method in LEARNERS | {NOVICE}:
            tested = read_json(run / unit_file(tested_unit(method), CHOSEN_FILE))
            yield {**known, "split": "test", "metric": "best_round", "value": tested}
            for row in own:
                for name in ("score", "agreement", "expert_logprob", "js_divergence"):
                    if row["phase"] == "dev" and name in row:
                        metric = f"{name}, round {row['round']}"
                        yield {**known, "split": "dev", "metric": metric, "value": row[name]}


def _changes(before: Row, now: Row, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of learners, by path, that differ from the recipe's."""
    for key, value in now.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            yield from _changes(before[key], value, path)
        elif value != before.get(key) and path not in NOT_A_LEARNERS:
            yield path, value


def _label(method: str, changes: Row) -> str:
    """A method's name with the changed settings that apply to it."""
    of_others = (LEARNERS | {"prompting"}) - {"prompting" if method in PROMPTED else method}
    if method not in LEARNERS:
        of_others |= {"rounds", "inspection"}
    if method not in PRACTISING:
        of_others |= {"detours"}
    own = {
        path.removeprefix(f"{method}."): value
        for path, value in changes.items()
        if path.split(".")[0] not in of_others
    }
    return " ".join([method, *(f"{path}={value}" for path, value in own.items())])


def add(runs: Sequence[Path]) -> None:
    """Adds the rows of finished runs; existing ones are replaced."""
    RESULTS.parent.mkdir(exist_ok=True)
    with lock(
        RESULTS.with_suffix(".lock"), wait=True
    ):  # two series of runs may end at the same time
        _add(runs)


def _add(runs: Sequence[Path]) -> None:
    found = {_key(row): row for row in read()}
    for run in runs:
        if (run / RESULTS_JSON).exists():
            found |= {_key(row): row for row in rows_of(run)}
    with atomic_write(RESULTS) as file:
        for key in sorted(found, key=str):
            file.write(json.dumps(found[key]).encode() + b"\n")


def read() -> list[Row]:
    """All rows."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("add").add_argument("runs", type=Path, nargs="+")
    commands.add_parser("write")
    options = parser.parse_args()
    if options.command == "add":
        add(options.runs)
    else:
        for path in PAGES:
            path.write_text(filled(path.read_text(), read()))


if __name__ == "__main__":
    main()
