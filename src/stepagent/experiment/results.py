"""Results of a run from its test episodes: results.json for programs, summary.md for people."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepagent.evaluation import summarize
from stepagent.experiment.comparison import compare
from stepagent.experiment.run import Run
from stepagent.experiment.run_folder import (
    CHOSEN_FILE,
    RESULTS,
    RESULTS_JSON,
    SUMMARY,
    TEST_FILE,
    episodes_file,
    lost_key,
    tested_unit,
)
from stepagent.methods import METHODS, REFLECTIONS, method_label
from stepagent.statistics import Interval
from stepagent.types import Trajectory


def write_results(seed: int, run: Run, own_methods: Iterable[str] = ()) -> None:
    """Writes results.json and summary.md from the test episodes of all tested methods.

    Raises `RunError` if they are not as they were written.
    """
    methods = (*METHODS, *own_methods)
    episodes: dict[str, Sequence[Trajectory]] = {}
    for method in methods:
        name = episodes_file(tested_unit(method))
        is_there = run.units.writer(name) or (run.folder / name).exists()
        if run.is_done(tested_unit(method)) and is_there:
            episodes[method] = run.read_records(name, Trajectory)
    rows = []
    for method, own in episodes.items():
        result = summarize(own)
        # Metrics of a benchmark are means of different things, so there is no common interval.
        others = {
            name: Interval(mean=value, low=None, high=None, n=len(own))
            for name, value in _metrics(run, method).items()
        }
        known = {"score": result.score, "success": result.success}
        for metric, interval in (known | others).items():
            about = {"method": method, "task": own[0].task, "split": "test", "metric": metric}
            rows.append(result_row(about, interval, seed))
    write_both(run, rows, summary(run, methods, episodes))


def result_row(about: Mapping[str, str], interval: Interval, seed: int) -> dict[str, Any]:
    """A row of results.json; `about` has its method, task, split and metric."""
    return {
        **about,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "seed": seed,
    }


def write_both(run: Run, rows: Sequence[Mapping[str, Any]], text: str) -> None:
    """Writes results.json and summary.md as the last unit of a run."""
    with run.unit(RESULTS):
        with run.write(RESULTS_JSON) as file:
            file.write(json.dumps(rows, indent=1, allow_nan=False).encode() + b"\n")
        with run.write(SUMMARY) as file:
            file.write(text.encode())


def summary(run: Run, methods: Sequence[str], episodes: dict[str, Sequence[Trajectory]]) -> str:
    """A table of the test results, and in plain words what beat what."""
    width = max([22, *(len(method_label(method)) + 2 for method in episodes)])
    lines = [f"{'method':<{width}}{'round':>6}{'score (95 % interval)':>26}{'success':>24}{'n':>6}"]
    chosen = {method: run.read_json(tested_unit(method), CHOSEN_FILE) for method in episodes}
    for method, own in episodes.items():
        result = summarize(own)
        lines.append(
            f"{method_label(method):<{width}}{chosen[method]:>6}{interval_text(result.score):>26}"
            f"{interval_text(result.success, percent=True):>24}{len(own):>6}"
        )
    lines.append("")
    for method in episodes:
        if found := _metrics(run, method):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            lines.append(f"{method_label(method)}: {shown}.")
    for method in methods:
        name = method_label(method)
        known = run.config["data"].get(lost_key(tested_unit(method)), {"lost": []})
        if count := len(known["lost"]):
            lines.append(f"{name}: {count} of {known['of']} test episodes lost, see config.json.")
        if stopped := run.config["data"].get(method, {}).get("stopped"):
            lines.append(f"{name} was stopped: {stopped}.")
        if chosen.get(method) == 0 and (method not in METHODS or METHODS[method].has_rounds):
            lines.append(f"{name}: no round beat the novice on dev, so this is the novice itself.")
    for method in REFLECTIONS:
        if method in episodes:
            others = [other for other in episodes if other not in REFLECTIONS]
            lines += [_compared(method, other, episodes) for other in others]
    return "\n".join(lines) + "\n"


def _metrics(run: Run, method: str) -> dict[str, float]:
    """The benchmark's metrics of a tested method."""
    found: dict[str, float] = run.read_json(tested_unit(method), TEST_FILE)
    return found


def interval_text(interval: Interval, *, percent: bool = False) -> str:
    """A mean with its 95 % interval as text; a dash for what is not known."""
    if interval.mean is None:
        return "-"
    scale, unit = (100, " %") if percent else (1, "")
    if interval.low is None or interval.high is None:
        return f"{interval.mean * scale:.1f}{unit}"
    low, high = interval.low * scale, interval.high * scale
    return f"{interval.mean * scale:.1f} ({low:.1f} to {high:.1f}){unit}"


def _compared(method: str, other: str, episodes: dict[str, Sequence[Trajectory]]) -> str:
    """One sentence on the paired difference in score."""
    difference = compare(episodes[method], episodes[other]).score
    name, against = method_label(method), method_label(other)
    if difference.mean is None:
        return f"{name} and {against} share no items to compare."
    if difference.low is None or difference.high is None:
        figures = f"{difference.mean:+.1f} points, too few items for an interval"
        is_clear = False
    else:
        figures = (
            f"{difference.mean:+.1f} points, paired 95 % interval "
            f"{difference.low:+.1f} to {difference.high:+.1f}"
        )
        is_clear = difference.low > 0
    if difference.mean <= 0:
        return f"{name} does NOT beat {against} ({figures})."
    if is_clear:
        return f"{name} ends clearly above {against} ({figures})."
    return f"{name} ends above {against}, but this may be chance ({figures})."
