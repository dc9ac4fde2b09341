"""Results of a run, from its test episodes: results.json for programs, summary.md for people."""

import json
from collections.abc import Sequence

from stepagent.evaluation import summarize
from stepagent.experiment.run import Run
from stepagent.statistics import Interval, paired_difference
from stepagent.types import METHODS, Trajectory

UNLEARNT = ("zero_shot", "react", "sft")
"""Methods without rounds."""

REFLECTION = ("implicit", "inverse")
"""What all others are compared with."""


def write_results(seed: int, run: Run) -> None:
    """Writes results.json and summary.md from the test episodes of finished units.

    Raises `RunError` if they are not as they were written.
    """
    episodes: dict[str, Sequence[Trajectory]] = {}
    for method in METHODS:
        name = f"episodes/{method}-test.jsonl"
        is_there = run.units.writer(name) or (run.folder / name).exists()
        if run.is_done(f"{method}-test") and is_there:
            episodes[method] = run.read_records(name, Trajectory)
    rows = []
    for method, own in episodes.items():
        result = summarize(own)
        # The benchmark's own metrics are means of different things: they have no common interval.
        others = {
            name: Interval(mean=value, low=None, high=None, n=len(own))
            for name, value in _metrics(run, method).items()
        }
        known = {"score": result.score, "success": result.success}
        for metric, interval in (known | others).items():
            rows.append(
                {
                    "method": method,
                    "task": own[0].task,
                    "split": "test",
                    "metric": metric,
                    "mean": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "n": interval.n,
                    "seed": seed,
                }
            )
    with run.unit("results"):
        with run.write("results.json") as file:
            file.write(json.dumps(rows, indent=1, allow_nan=False).encode() + b"\n")
        with run.write("summary.md") as file:
            file.write(summary(run, episodes).encode())


def summary(run: Run, episodes: dict[str, Sequence[Trajectory]]) -> str:
    """A table of the test results and plain words on what beat what."""
    width = max([22, *(len(METHODS[method]) + 2 for method in episodes)])
    lines = [f"{'method':<{width}}{'round':>6}{'score (95 % interval)':>26}{'success':>24}{'n':>6}"]
    chosen = {method: run.read_json(f"{method}-test", "best_round.json") for method in episodes}
    for method, own in episodes.items():
        result = summarize(own)
        lines.append(
            f"{METHODS[method]:<{width}}{chosen[method]:>6}{interval_text(result.score):>26}"
            f"{interval_text(result.success, percent=True):>24}{len(own):>6}"
        )
    lines.append("")
    for method in episodes:
        if found := _metrics(run, method):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            lines.append(f"{METHODS[method]}: {shown}.")
    for method in METHODS:
        known = run.config["data"].get(f"{method}-test, lost", {"lost": []})
        if count := len(known["lost"]):
            lines.append(
                f"{METHODS[method]}: {count} of {known['of']} test episodes lost, see config.json."
            )
        if stopped := run.config["data"].get(method, {}).get("stopped"):
            lines.append(f"{METHODS[method]} was stopped: {stopped}.")
        if chosen.get(method) == 0 and method not in UNLEARNT:
            name = METHODS[method]
            lines.append(f"{name}: no round beat the novice on dev, so this is the novice itself.")
    for method in REFLECTION:
        if method in episodes:
            others = [other for other in episodes if other not in REFLECTION]
            lines += [_compared(method, other, episodes) for other in others]
    return "\n".join(lines) + "\n"


def _metrics(run: Run, method: str) -> dict[str, float]:
    """The benchmark's own metrics of a tested method."""
    found: dict[str, float] = run.read_json(f"{method}-test", "metrics.json")
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
    mine, theirs = (
        {t.id: t.score for t in episodes[name] if t.score is not None} for name in (method, other)
    )
    both = [item for item in mine if item in theirs]
    difference = paired_difference([mine[i] for i in both], [theirs[i] for i in both])
    name, against = METHODS[method], METHODS[other]
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
