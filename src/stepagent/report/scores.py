"""The numbers of a report: score tables, paired differences, curves and histograms."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stepagent.experiment.comparison import Paired, compare
from stepagent.methods import CONTROL, METHODS, NOVICE, method_label
from stepagent.report.plots import IntervalRow, Line, interval_plot, line_plot, reward_histogram
from stepagent.report.runs import Episodes, Result, RunView, visible
from stepagent.types import PracticedStep, Trajectory

CURVES = {
    "score": ("Score", "dev score (0 to 100)"),
    "agreement": ("Agreement with the expert", "share of held-out steps"),
    "js_divergence": ("Jensen-Shannon estimate", "nats"),
    "expert_logprob": ("Log-probability of expert actions", "nats per action"),
    "discriminator_accuracy": ("Discriminator accuracy", "share of actions"),
    "success": ("Success", "dev success rate"),
}


@dataclass(frozen=True)
class Comparison:
    """A method against a base method, in each run."""

    split: str
    method: str
    base: str
    differences: tuple[Paired, ...]


@dataclass(frozen=True)
class ScoreTable:
    """Results on one split of one task; `cells` is keyed by method, run and metric."""

    task: str
    split: str
    metrics: tuple[str, ...]
    methods: tuple[str, ...]
    cells: dict[tuple[str, int, str], Result]
    plots: tuple[Markup, ...]

    def best(self, run: int, metric: str) -> float | None:
        """The highest mean of a column; None if all are equal."""
        column = [c.mean for key, c in self.cells.items() if key[1:] == (run, metric)]
        means = {mean for mean in column if mean is not None}
        return max(means) if len(means) > 1 else None

    def across(self, method: str, metric: str) -> tuple[float, float, float] | None:
        """Mean, minimum and maximum over runs; None if a run has no result."""
        row = [c.mean for key, c in self.cells.items() if (key[0], key[2]) == (method, metric)]
        means = [mean for mean in row if mean is not None]
        runs = {run for _, run, _ in self.cells}
        return (
            (sum(means) / len(means), min(means), max(means)) if len(means) == len(runs) else None
        )


def labels(runs: Sequence[RunView]) -> list[str]:
    """Short names of the runs: their seeds if these differ, else their folders."""
    seeds = [run.settings.seed for run in runs]
    recipes = {run.settings.recipe for run in runs}
    if len(recipes) == 1 and None not in seeds and len(set(seeds)) == len(seeds):
        return [f"seed {seed}" for seed in seeds]
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def methods_of(runs: Sequence[RunView]) -> list[str]:
    """The methods of all runs in the order of the page, which also sets their colours."""
    found = {result.method for run in runs for result in run.results}
    found |= {row.stage for run in runs for row in run.metrics}
    found |= {part.method for run in runs for part in run.practice}
    found |= {part.method for run in runs for part in run.episodes}
    return [m for m in METHODS if m in found] + sorted(found - METHODS.keys())


def score_tables(runs: Sequence[RunView], methods: Sequence[str]) -> Iterator[ScoreTable]:
    """One table for each task and split, test first."""
    results = [(k, result) for k, run in enumerate(runs) for result in run.results]
    places = dict.fromkeys((result.task, result.split) for _, result in results)
    for task, split in sorted(places, key=lambda place: (place[0], place[1] != "test", place[1])):
        cells = {
            (result.method, k, result.metric): result
            for k, result in results
            if (result.task, result.split) == (task, split)
        }
        found = {metric for _, _, metric in cells}
        rows = tuple(m for m in methods if any(method == m for method, _, _ in cells))
        metrics = tuple(sorted(found, key=lambda metric: (metric not in CURVES, metric)))
        plots = [_interval_plot(cells, rows, methods, m, len(runs), split) for m in metrics]
        yield ScoreTable(task, split, metrics, rows, cells, tuple(plots))


def _interval_plot(
    cells: Mapping[tuple[str, int, str], Result],
    rows: Sequence[str],
    methods: Sequence[str],
    metric: str,
    runs: int,
    split: str,
) -> Markup:
    factor = 100 if metric == "success" else 1
    intervals = []
    for method in rows:
        marks: list[tuple[float, float | None, float | None] | None] = []
        for k in range(runs):
            cell = cells.get((method, k, metric))
            if cell is None or cell.mean is None:
                marks.append(None)
                continue
            low, high = (None if v is None else v * factor for v in (cell.low, cell.high))
            marks.append((cell.mean * factor, low, high))
        name = str(visible(method_label(method)[:40]))
        intervals.append(IntervalRow(label=name, series=methods.index(method), intervals=marks))
    unit = {"success": "success rate (%)", "score": "score (0 to 100)"}.get(metric, metric)
    return interval_plot(intervals, title=f"{metric}, {split}", x_label=f"{split} {unit}")


def paired(runs: Sequence[RunView], methods: Sequence[str]) -> Iterator[Comparison]:
    """Differences to the novice and to continued SFT on the items that both played."""
    splits = {part.split for run in runs for part in run.episodes}
    for split in [s for s in ("test", "dev") if s in splits][:1]:
        finals = [{m: final_episodes(run, m, split) for m in methods} for run in runs]
        for base in (NOVICE, CONTROL):
            for method in methods:
                if method == base or (base, method) == (CONTROL, NOVICE):
                    continue
                pairs = tuple(
                    compare(_trajectories(final[method]), _trajectories(final.get(base)))
                    for final in finals
                )
                if any(pair.score.n or pair.success.n for pair in pairs):
                    yield Comparison(split, method, base, pairs)


def final_episodes(run: RunView, method: str, split: str) -> Episodes | None:
    """The episodes of the method's chosen policy, else of its last round."""
    parts = [p for p in run.episodes if (p.method, p.split) == (method, split)]
    return max(parts, key=lambda p: (p.round is None, p.round or 0), default=None)


def _trajectories(part: Episodes | None) -> tuple[Trajectory, ...]:
    return part.trajectories if part else ()


def learning_curves(
    runs: Sequence[RunView], methods: Sequence[str]
) -> Iterator[tuple[str, Markup]]:
    """One figure per dev metric over rounds, with its title."""
    for key, (title, unit) in CURVES.items():
        lines = []
        for k, run in enumerate(runs):
            for series, method in enumerate(methods):
                rows = [m for m in run.metrics if (m.stage, m.phase) == (method, "dev")]
                rows = sorted((m for m in rows if key in m.values), key=lambda m: m.round)
                if rows:
                    low = [m.values.get(f"{key}_low", m.values[key]) for m in rows]
                    high = [m.values.get(f"{key}_high", m.values[key]) for m in rows]
                    x, y = [m.round for m in rows], [m.values[key] for m in rows]
                    lines.append(Line(series=series, style=k, x=x, y=y, low=low, high=high))
        if lines:
            yield title, line_plot(lines, title=title, x_label="round", y_label=unit)


def training_curves(
    runs: Sequence[RunView], methods: Sequence[str]
) -> Iterator[tuple[str, Markup]]:
    """One figure per training metric, in the order it was logged."""
    values: dict[tuple[str, str], dict[tuple[int, int], list[float]]] = {}
    for k, run in enumerate(runs):
        for row in run.metrics:
            for name in row.values.keys() - {"step", "seconds"}:
                line = values.setdefault((row.phase, name), {})
                line.setdefault((methods.index(row.stage), k), []).append(row.values[name])
    for (phase, name), line in sorted(values.items()):
        if phase != "dev":
            title = str(visible(f"{name} ({phase})"))
            lines = [
                Line(series=series, style=k, x=range(len(y)), y=y)
                for (series, k), y in sorted(line.items())
            ]
            yield title, line_plot(lines, title=title, x_label="row", y_label=name, small=True)


def histograms(runs: Sequence[RunView]) -> Iterator[tuple[str, Markup]]:
    """Step rewards of each method in its last round."""
    for label, run in zip(labels(runs), runs, strict=True):
        for part in {p.method: p for p in sorted(run.practice, key=lambda p: p.round)}.values():
            expert, agent = step_rewards(part.steps)
            if expert or agent:
                title = f"{method_label(part.method)}, round {part.round}"
                title = str(visible(f"{title}, {label}" if len(runs) > 1 else title))
                yield title, reward_histogram(expert, agent, title=title)


def step_rewards(steps: Sequence[PracticedStep]) -> tuple[list[float], list[float]]:
    """Rewards of the expert's actions, and of the agent's."""
    expert = [s.expert_reward for s in steps if s.expert_reward is not None]
    return expert, [a.reward for s in steps for a in s.agent_actions if a.reward is not None]
