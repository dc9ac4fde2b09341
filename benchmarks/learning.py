"""Results of many runs: one row per figure in learning.jsonl, and the tables made from them.

    python benchmarks/learning.py add runs/results/*    rows of finished runs, each once
    python benchmarks/learning.py write                 the tables in README.md and docs/results.md

A row is {task, policy, method, seed, split, metric, value, episodes, env_steps, train_tokens}:
`env_steps` and `train_tokens` are what the method's rounds took, after the novice: tokens that were
forwarded for a gradient, not those of sampling and of references. A method with other settings than
its recipe's has them behind its name. docs/results-protocol.md says how the runs were made.
"""

import argparse
import fcntl
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from stepagent.atomic import atomic_write
from stepagent.recipes import RECIPES
from stepagent.results import interval_text
from stepagent.run import to_json
from stepagent.statistics import mean_interval, paired_difference
from stepagent.types import METHODS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learning.jsonl"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
KEY = ("task", "policy", "method", "seed", "split", "metric")
OURS = ("implicit", "inverse", "dagger")
PROMPTED = {"zero_shot", "react"}
PRACTISING = {"implicit", "inverse", "step_dpo", "dagger"}
LEARNERS = METHODS.keys() - PROMPTED - {"sft"}

Row = dict[str, Any]


def rows_of(run: Path) -> Iterator[Row]:
    """The rows of a finished run."""
    about = json.loads((run / "config.json").read_bytes())
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changes = dict(_changes(to_json(RECIPES[about["recipe"]]), about["config"]))
    model = about["config"]["model"]
    common = {
        "task": about["protocol"]["task"],
        "policy": "tiny" if isinstance(model, dict) else model,
        "seed": about["seed"],
    }
    for result in json.loads((run / "results.json").read_bytes()):
        method = result["method"]
        # The novice's row costs nothing here; a last measurement after all rounds is no learning.
        own = [row for row in log if row["stage"] == method]
        rounds = [r for r in own if 0 < r["round"] <= about["config"]["rounds"]]
        taken = {
            "env_steps": sum(row.get("env_steps", 0) for row in rounds),
            "train_tokens": int(sum(row.get("tokens", 0) for row in rounds)),
        }
        known = {**common, "method": _label(method, changes), "episodes": result["n"], **taken}
        yield {**known, "split": "test", "metric": result["metric"], "value": result["mean"]}
        if result["metric"] == "score" and method in LEARNERS | {"sft"}:
            for row in own:
                for name in ("score", "agreement", "expert_logprob", "js_divergence"):
                    if row["phase"] == "dev" and name in row:
                        metric = f"{name}, round {row['round']}"
                        yield {**known, "split": "dev", "metric": metric, "value": row[name]}


def _changes(before: Row, now: Row, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of learners, by their path, that are not the recipe's."""
    for key, value in now.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            yield from _changes(before[key], value, path)
        elif value != before.get(key) and path not in ("seed", "methods", "prompting.methods"):
            yield path, value


def _label(method: str, changes: Row) -> str:
    """A method's name with the settings that concern it: its own, and those of all learners."""
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
    """Adds the rows of finished runs; a row that is there already is replaced."""
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two streams of runs may end at once
        _add(runs)


def _add(runs: Sequence[Path]) -> None:
    found = {_key(row): row for row in read()}
    for run in runs:
        if (run / "results.json").exists():
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


@dataclass(frozen=True)
class Panel:
    """Scores of one task and policy."""

    rows: Sequence[Row]

    def by_seed(
        self, method: str, metric: str = "score", column: str = "value"
    ) -> dict[int, float]:
        """The values of a method, or what it took, by seed."""
        return {
            row["seed"]: row[column]
            for row in self.rows
            if (row["method"], row["metric"], row["split"]) == (method, metric, "test")
        }

    def best_on_dev(self, method: str) -> str:
        """The best round's score, over seeds; a dash for methods without rounds."""
        best: dict[int, float] = {}
        for row in self.rows:
            if row["method"] == method and row["metric"].startswith("score, round "):
                best[row["seed"]] = max(row["value"], best.get(row["seed"], row["value"]))
        return f"{mean(best.values()):.1f}" if best else "-"

    @property
    def methods(self) -> list[str]:
        """Those with results, in the order of tables; after each its variants."""
        order = list(METHODS)
        found = {row["method"] for row in self.rows}
        return sorted(found, key=lambda m: (order.index(_plain(m)), m))

    def mean(self, method: str, metric: str = "score", column: str = "value") -> float:
        """Over seeds."""
        return mean(self.by_seed(method, metric, column).values())

    @property
    def best_baseline(self) -> str:
        """The method of others with the highest mean test score: the hardest one to beat."""
        others = [m for m in self.methods if m in METHODS and m not in OURS]
        return max(others, key=self.mean)

    def difference(self, method: str, other: str) -> str:
        """Paired by seed, with its 95 % interval if there is one; a dash for the method itself."""
        mine, theirs = self.by_seed(method), self.by_seed(other)
        seeds = sorted(mine.keys() & theirs.keys())
        found = paired_difference([mine[s] for s in seeds], [theirs[s] for s in seeds])
        if method == other or found.mean is None:
            return "-"
        if found.low is None or found.high is None:
            return f"{found.mean:+.1f}"
        return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def results(rows: Sequence[Row]) -> str:
    """All methods with their recipe's settings, as Markdown."""
    panel = Panel([r for r in rows if r["method"] == _plain(r["method"])])
    if not panel.rows:
        return "Not run yet."
    best = panel.best_baseline
    lines = [
        f"| method | seeds | score | success, % | minus SFT, continued | minus {METHODS[best]} "
        f"| minus {METHODS['dagger']} | env steps | tokens trained on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in panel.methods:
        scores = mean_interval([*panel.by_seed(method).values()])
        lines.append(
            f"| {_name(method)} | {scores.n} | {interval_text(scores)} "
            f"| {100 * panel.mean(method, 'success'):.1f} | {panel.difference(method, 'sft_more')} "
            f"| {panel.difference(method, best)} | {panel.difference(method, 'dagger')} "
            f"| {panel.mean(method, column='env_steps'):,.0f} "
            f"| {panel.mean(method, column='train_tokens') / 1e6:.2f} M |"
        )
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """The same in short: scores, and what each method has gained on continued SFT."""
    panel = Panel([r for r in rows if r["method"] == _plain(r["method"])])
    lines = ["| method | seeds | score | minus SFT, continued |", "|---|---|---|---|"]
    for method in panel.methods:
        scores = mean_interval([*panel.by_seed(method).values()])
        lines.append(
            f"| {_name(method)} | {scores.n} | {interval_text(scores)} "
            f"| {panel.difference(method, 'sft_more')} |"
        )
    return "\n".join(lines) if panel.rows else "Not run yet."


def ablations(rows: Sequence[Row]) -> str:
    """Methods with other settings beside their recipe's, on the same seeds, as Markdown."""
    panel = Panel(rows)
    variants = [m for m in panel.methods if m != _plain(m)]
    if not variants:
        return "Not run yet."
    lines = [
        "| setting | seeds | dev, best round | test | success, % | minus its recipe's |",
        "|---|---|---|---|---|---|",
    ]
    for method in panel.methods:
        if all(_plain(method) != _plain(variant) for variant in variants):
            continue
        scores = mean_interval([*panel.by_seed(method).values()])
        lines.append(
            f"| {_name(method)} | {scores.n} | {panel.best_on_dev(method)} "
            f"| {interval_text(scores)} | {100 * panel.mean(method, 'success'):.1f} "
            f"| {panel.difference(method, _plain(method))} |"
        )
    return "\n".join(lines)


def rounds(rows: Sequence[Row]) -> str:
    """What dev says of the policy after each round, means over seeds, as Markdown."""
    shown = ("score", "agreement", "expert_logprob", "js_divergence")
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in rows:
        only_longer = all(s.startswith("rounds=") for s in row["method"].split()[1:])
        if row["split"] == "dev" and only_longer:
            metric, _, number = row["metric"].partition(", round ")
            values = found.setdefault((row["method"], int(number)), {})
            values.setdefault(metric, []).append(row["value"])
    if not found:
        return "Not run yet."
    lines = [
        "| method | round | score | agreement | expert log-prob | JS estimate |",
        "|---|---|---|---|---|---|",
    ]
    order = list(METHODS)
    for method, number in sorted(found, key=lambda key: (order.index(_plain(key[0])), *key)):
        values = found[method, number]
        figures = [f"{mean(values[name]):.3f}" if name in values else "-" for name in shown]
        lines.append(f"| {_name(method)} | {number} | {' | '.join(figures)} |")
    return "\n".join(lines)


TABLES = {"results": results, "summary": summary, "ablations": ablations, "rounds": rounds}


def _plain(method: str) -> str:
    """A method without its settings."""
    return method.split()[0]


def _name(method: str) -> str:
    """For people; settings that are not the recipe's stay as they are."""
    plain, *changes = method.split()
    return ", ".join([METHODS[plain], *changes])


def filled(page: str, rows: Sequence[Row]) -> str:
    """A page with each table anew between `<!-- results: TASK POLICY -->` and `<!-- end -->`.

    Or `summary`, `ablations`, `rounds`; any other mark is an error.
    """

    def anew(mark: re.Match[str]) -> str:
        kind, task, policy = mark[1], mark[2], mark[3]
        if kind not in TABLES:
            raise ValueError(f"{mark[0][:60]!r}: expected one of {', '.join(TABLES)}")
        own = [r for r in rows if (r["task"], r["policy"]) == (task, policy)]
        return f"<!-- {kind}: {task} {policy} -->\n{TABLES[kind](own)}\n<!-- end -->"

    return re.sub(r"<!-- (\S+): (\S+) (\S+) -->.*?<!-- end -->", anew, page, flags=re.DOTALL)


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
