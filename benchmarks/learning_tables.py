"""Makes the tables of README.md and docs from the rows that learning.py collects.

A page marks each table by `<!-- KIND: RECIPES POLICY -->` and `<!-- end -->`; several recipes are
separated by commas.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from stepagent.experiment.results import interval_text
from stepagent.methods import CONTROL, METHODS, NOVICE, REFLECTIONS, method_label
from stepagent.statistics import mean_interval, paired_difference

OURS = (*REFLECTIONS, "dagger")

Row = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """Scores of one recipe and policy."""

    rows: Sequence[Row]

    def by_seed(
        self, method: str, metric: str = "score", column: str = "value"
    ) -> dict[int, float]:
        """The values of a method, or of a cost column, by seed."""
        return {
            row["seed"]: row[column]
            for row in self.rows
            if (row["method"], row["metric"], row["split"]) == (method, metric, "test")
        }

    def on_dev(self, method: str, metric: str) -> dict[int, dict[int, float]]:
        """Dev values by seed and round."""
        found: dict[int, dict[int, float]] = {}
        for row in self.rows:
            name, _, number = row["metric"].partition(", round ")
            if (row["method"], row["split"], name) == (method, "dev", metric):
                found.setdefault(int(number), {})[row["seed"]] = row["value"]
        return dict(sorted(found.items()))

    def best_on_dev(self, method: str) -> str:
        """The best round's score, over seeds; a dash for methods without rounds."""
        rounds = self.on_dev(method, "score").values()
        best = [max(r[s] for r in rounds if s in r) for s in set().union(*rounds)]
        return f"{mean(best):.1f}" if best else "-"

    @property
    def methods(self) -> list[str]:
        """Methods with results in table order, each followed by its variants."""
        order = list(METHODS)
        found = {row["method"] for row in self.rows}
        return sorted(found, key=lambda m: (order.index(_plain(m)), m))

    def mean(self, method: str, metric: str = "score", column: str = "value") -> float:
        """The mean over seeds."""
        return mean(self.by_seed(method, metric, column).values())

    @property
    def best_baseline(self) -> str:
        """The baseline with the highest mean test score, among those with the most seeds.

        Means over fewer seeds would be of other novices.
        """
        others = [m for m in self.methods if m in METHODS and m not in OURS]
        most = max(len(self.by_seed(m)) for m in others)
        return max((m for m in others if len(self.by_seed(m)) == most), key=self.mean)

    def tested_rounds(self, method: str) -> str:
        """The round tested for each seed (0 is the novice); a dash for methods without rounds."""
        found = self.by_seed(method, "best_round")
        has_rounds = found and method != NOVICE
        return " ".join(f"{found[seed]:.0f}" for seed in sorted(found)) if has_rounds else "-"

    def interval(self, method: str) -> str:
        """The score on test, with its interval over seeds."""
        return interval_text(mean_interval([*self.by_seed(method).values()]))

    def score(self, method: str) -> str:
        """Test score with its interval, and whether the method stopped before its first round."""
        scores = mean_interval([*self.by_seed(method).values()])
        never = scores.n and _plain(method) != NOVICE and not self.on_dev(method, "score")
        return self.interval(method) + (", stopped" if never else "")

    def difference(self, method: str, other: str) -> str:
        """Difference paired by seed with its 95 % interval; a dash for the method itself."""
        mine, theirs = self.by_seed(method), self.by_seed(other)
        seeds = sorted(mine.keys() & theirs.keys())
        found = paired_difference([mine[s] for s in seeds], [theirs[s] for s in seeds])
        if method == other or found.mean is None:
            return "-"
        if found.low is None or found.high is None:
            return f"{found.mean:+.1f}"
        return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def results(rows: Sequence[Row]) -> str:
    """Markdown table of all methods with their recipe's settings."""
    panel = _with_recipe_settings(rows)
    compared = dict.fromkeys((CONTROL, panel.best_baseline, "dagger")) if panel.rows else {}
    header = ["method", "seeds", "rounds tested", "score", "success, %"]
    header += [f"minus {method_label(other)}" for other in compared]
    lines = []
    for method in panel.methods:
        scores = mean_interval([*panel.by_seed(method).values()])
        lines.append(
            [
                _name(method),
                str(scores.n),
                panel.tested_rounds(method),
                interval_text(scores),
                f"{100 * panel.mean(method, 'success'):.1f}",
                *(panel.difference(method, other) for other in compared),
                f"{panel.mean(method, column='env_steps'):,.0f}",
                f"{panel.mean(method, column='train_tokens') / 1e6:.2f} M",
            ]
        )
    return _markdown([*header, "env steps", "tokens trained on"], lines)


def summary(rows: Sequence[Row]) -> str:
    """Short Markdown table: scores, and each method's gain over continued SFT."""
    panel = _with_recipe_settings(rows)
    lines = []
    for method in panel.methods:
        scores = mean_interval([*panel.by_seed(method).values()])
        difference = panel.difference(method, CONTROL)
        lines.append([_name(method), str(scores.n), interval_text(scores), difference])
    return _markdown(["method", "seeds", "score", "minus SFT, continued"], lines)


def ablations(rows: Sequence[Row]) -> str:
    """Markdown table of changed settings next to the recipe's, on the same seeds."""
    panel = Panel(rows)
    varied = {_plain(method) for method in panel.methods if method != _plain(method)}
    lines = []
    for method in panel.methods:
        if _plain(method) not in varied:
            continue
        lines.append(
            [
                _name(method),
                str(len(panel.by_seed(method))),
                panel.best_on_dev(method),
                panel.score(method),
                f"{100 * panel.mean(method, 'success'):.1f}",
                panel.difference(method, _plain(method)),
            ]
        )
    header = ["setting", "seeds", "dev, best round", "test", "success, %", "minus its recipe's"]
    return _markdown(header, lines)


def rounds(rows: Sequence[Row]) -> str:
    """Markdown table of dev values after each round, means over seeds."""
    panel = Panel(rows)
    lines = []
    for method in panel.methods:
        if any(not change.startswith("rounds=") for change in method.split()[1:]):
            continue
        shown = ("score", "agreement", "expert_logprob", "js_divergence")
        found = [panel.on_dev(method, metric) for metric in shown]
        for number in sorted({number for values in found for number in values}):
            figures = (f"{mean(v[number].values()):.3f}" if number in v else "-" for v in found)
            lines.append([_name(method), str(number), *figures])
    header = ["method", "round", "score", "agreement", "expert log-prob", "JS estimate"]
    return _markdown(header, lines)


def tasks(rows: Sequence[Row]) -> str:
    """Markdown table with a line per recipe: its task and the scores of SFT and reflection."""
    shown = (NOVICE, CONTROL, *REFLECTIONS)
    lines = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        panel = Panel([row for row in rows if row["recipe"] == recipe])
        first, seeds = panel.rows[0], {row["seed"] for row in panel.rows}
        cells = [first["task"], str(len(seeds)), str(first["episodes"])]
        cells += [panel.score(method) for method in shown]
        estimates = panel.on_dev("inverse", "js_divergence").values()
        cells.append(", ".join(f"{mean(values.values()):.3f}" for values in estimates) or "-")
        lines.append(cells)
    names = [method_label(method) for method in shown]
    return _markdown(["task", "seeds", "test items", *names, "JS estimate"], lines)


HEADLINE = (NOVICE, CONTROL, "step_dpo", "dagger", *REFLECTIONS)
TASK_NAMES = {"scienceworld": "ScienceWorld", "alfworld": "ALFWorld"}


def headline(rows: Sequence[Row]) -> str:
    """The main methods on all recipes side by side, as Markdown."""
    panels = _by_recipe(rows)
    header = ["method"]
    for panel in panels:
        header += [TASK_NAMES[panel.rows[0]["task"]], f"minus {method_label(CONTROL)}"]
    lines = []
    for method in HEADLINE:
        cells = ((p.interval(method), p.difference(method, CONTROL)) for p in panels)
        lines.append([_name(method), *(cell for both in cells for cell in both)])
    return _markdown(header, lines if panels else [])


def of_method(rows: Sequence[Row], method: str) -> str:
    """One method, one line for each recipe, as Markdown."""
    lines = []
    for panel in _by_recipe(rows):
        if seeds := panel.by_seed(method):
            lines.append(
                [
                    TASK_NAMES[panel.rows[0]["task"]],
                    str(len(seeds)),
                    panel.interval(method),
                    f"{100 * panel.mean(method, 'success'):.1f}",
                    panel.difference(method, CONTROL),
                    f"{panel.mean(method, column='env_steps'):,.0f}",
                ]
            )
    minus = f"minus {method_label(CONTROL)}"
    return _markdown(["task", "seeds", "score", "success, %", minus, "env steps"], lines)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "results": results,
    "summary": summary,
    "ablations": ablations,
    "rounds": rounds,
    "tasks": tasks,
    "headline": headline,
    **{f"method-{method}": partial(of_method, method=method) for method in METHODS},
}


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "Not run yet."
    rows = [" | ".join(cells) for cells in (header, *lines)]
    first, *others = [f"| {row} |" for row in rows]
    return "\n".join([first, "|---" * len(header) + "|", *others])


def _with_recipe_settings(rows: Sequence[Row]) -> Panel:
    return Panel([row for row in rows if row["method"] == _plain(row["method"])])


def _by_recipe(rows: Sequence[Row]) -> list[Panel]:
    recipes = dict.fromkeys(row["recipe"] for row in rows)
    return [_with_recipe_settings([r for r in rows if r["recipe"] == own]) for own in recipes]


def _plain(method: str) -> str:
    """A method's name without changed settings."""
    return method.split()[0]


def _name(method: str) -> str:
    """A method's display name, followed by its changed settings."""
    plain, *changes = method.split()
    return ", ".join([method_label(plain), *changes])


def filled(page: str, rows: Sequence[Row]) -> str:
    """The page with each table rewritten between its marks; an unknown mark is an error."""

    def anew(mark: re.Match[str]) -> str:
        kind, recipes, policy = mark.groups()
        if kind not in TABLES:
            raise ValueError(f"{mark[0][:60]!r}: expected one of {', '.join(TABLES)}")
        own = [
            row
            for recipe in recipes.split(",")
            for row in rows
            if (row["recipe"], row["policy"]) == (recipe, policy)
        ]
        return f"<!-- {kind}: {recipes} {policy} -->\n{TABLES[kind](own)}\n<!-- end -->"

    return re.sub(r"<!-- (\S+): (\S+) (\S+) -->.*?<!-- end -->", anew, page, flags=re.DOTALL)
