"""SFT, more SFT, implicit and inverse reflection of the small model on all tasks, in one table.

Each task is one run from its recipe, which goes on where it was stopped; those that are finished
are only read. Data has to be there (`stepagent tasks`).

    python benchmarks/all_tasks.py --out runs/all-tasks --seed 0

Prints a table in Markdown: test scores with 95 % intervals, where no round beat the novice on dev
and it was tested itself, and where a method stopped before its first round was over. The last
column is inverse reflection's estimate of the divergence from the expert: of the novice, then of
each round.
"""

import argparse
import json
import subprocess
from pathlib import Path

from stepagent.types import METHODS

RECIPES = {
    "scienceworld": "scienceworld-demo",
    "alfworld": "alfworld-tiny",
    "webshop": "webshop-tiny",
    "mind2web": "mind2web-tiny",
    "hotpotqa": "hotpotqa-tiny",
    "2wikimultihopqa": "2wikimultihopqa-tiny",
    "musique": "musique-tiny",
}

COLUMNS = ("sft", "sft_more", "implicit", "inverse")


def row(task: str, run: Path) -> str:
    """One line of the table."""
    scores = {
        r["method"]: r for r in json.loads((run / "results.json").read_bytes())
        if r["metric"] == "score"
    }  # fmt: skip
    stopped = json.loads((run / "config.json").read_bytes())["data"]
    cells = []
    for method in COLUMNS:
        if (
            "stopped" in stopped.get(method, {})
            and not (run / "units" / f"{method}-round1").exists()
        ):
            cells.append("stopped, discriminator at chance")
            continue
        found = scores[method]
        tested = json.loads((run / "units" / f"{method}-test" / "best_round.json").read_bytes())
        cell = f"{found['mean']:.1f} ({found['low']:.1f} to {found['high']:.1f})"
        cells.append(cell if method == "sft" or tested else f"{cell}, the novice")
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    divergences = [f"{r['js_divergence']:.3f}" for r in rows if "js_divergence" in r]
    return f"| {task} | {scores['sft']['n']} | {' | '.join([*cells, ', '.join(divergences)])} |"


def main() -> None:
    """Runs what is not finished and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/all-tasks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    for task in options.tasks:
        run = options.out / f"{task}-seed{options.seed}"
        recipe = [RECIPES[task], "--out", str(run), "--seed", str(options.seed), "--resume"]
        subprocess.run(["stepagent", "train", *recipe], check=True)
    names = " | ".join(METHODS[method] for method in COLUMNS)
    print(f"\n| task | test items | {names} | JS estimate |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for task in options.tasks:
        print(row(task, options.out / f"{task}-seed{options.seed}"))


if __name__ == "__main__":
    main()
