"""The results of a run: results.json for programs and summary.md for people, from its episodes alone."""

from collections.abc import Sequence

from stepagent.evaluation import summarize
from stepagent.run import Run, read_json, write_json
from stepagent.atomic import atomic_write
from stepagent.statistics import Interval, paired_difference
from stepagent.trajectories import read_jsonl
from stepagent.types import Trajectory

METHODS = {
    "sft": "SFT",
    "sft_more": "SFT, more updates",
    "implicit": "implicit reflection",
    "inverse": "inverse reflection",
}
"""Names for people, in the order of tables."""


def write_results(seed: int, run: Run) -> None:
    """Writes results.json and summary.md from the test episodes that are there."""
    episodes: dict[str, Sequence[Trajectory]] = {}
    for method in METHODS:
        file = run.folder / "episodes" / f"{method}-test.jsonl"
        if file.exists():
            episodes[method] = read_jsonl(file, Trajectory)
    rows = []
    for method, own in episodes.items():
        result = summarize(own)
        for metric, interval in (("score", result.score), ("success", result.success)):
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
    write_json(run.folder / "results.json", rows)
    with atomic_write(run.folder / "summary.md") as file:
        file.write(summary(run, episodes).encode())


def summary(run: Run, episodes: dict[str, Sequence[Trajectory]]) -> str:
    """A table of the test results and plain words on what beat what."""
    lines = [f"{'method':<22}{'round':>6}{'score (95 % interval)':>26}{'success':>24}{'n':>6}"]
    for method, own in episodes.items():
        result = summarize(own)
        number = read_json(run.unit_folder(f"{method}-test") / "best_round.json")
        lines.append(
            f"{METHODS[method]:<22}{number:>6}{_shown(result.score, 1, 1):>26}"
            f"{_shown(result.success, 100, 1) + ' %':>24}{len(own):>6}"
        )
    lines.append("")
    for method in ("implicit", "inverse"):
        for other in ("sft", "sft_more"):
            if method in episodes and other in episodes:
                lines.append(_compared(method, other, episodes))
    return "\n".join(lines) + "\n"


def _shown(interval: Interval, scale: float, digits: int) -> str:
    if interval.mean is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.mean * scale:.{digits}f}"
    return (
        f"{interval.mean * scale:.{digits}f} "
        f"({interval.low * scale:.{digits}f} to {interval.high * scale:.{digits}f})"
    )


def _compared(method: str, other: str, episodes: dict[str, Sequence[Trajectory]]) -> str:
    """One sentence on the paired difference in score."""
    theirs = {t.id: t.score or 0.0 for t in episodes[other]}
    pairs = [(t.score or 0.0, theirs[t.id]) for t in episodes[method] if t.id in theirs]
    difference = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    name, against = METHODS[method].capitalize(), METHODS[other]
    if difference.mean is None or difference.low is None or difference.high is None:
        return f"{name} and {against} share too few items to compare."
    figures = (
        f"{difference.mean:+.1f} points, paired 95 % interval "
        f"{difference.low:+.1f} to {difference.high:+.1f}"
    )
    if difference.mean > 0:
        certain = "clearly " if difference.low > 0 else ""
        note = "" if certain else "; the interval includes 0, so this may be chance"
        return f"{name} ends {certain}above {against} ({figures}{note})."
    if difference.mean == 0:
        return f"{name} ends level with {against} ({figures})."
    return f"{name} does NOT beat {against} ({figures})."
