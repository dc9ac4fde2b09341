"""Results of a run without an environment: only how close each method is to the expert.

results.json    for programs: agreement and expert_logprob of every method on the split held-out
summary.md      for people: a table, what beat what, and what was not measured
"""

from collections.abc import Iterable, Sequence

from stepagent.experiment.dev_and_test import best_unit
from stepagent.experiment.held_out import (
    Compared,
    agreement,
    agreement_gain,
    expert_logprob,
    from_rows,
)
from stepagent.experiment.results import result_row, write_both
from stepagent.experiment.run import Run
from stepagent.experiment.run_folder import (
    CHOSEN_FILE,
    COMPARED_FILE,
    HELD_OUT,
    tested_unit,
    unit_path,
)
from stepagent.methods import METHODS, NOVICE, REFLECTIONS, method_label
from stepagent.statistics import Interval
from stepagent.types import Trajectory

SPLIT = "held-out"


def write_held_out_results(seed: int, run: Run, own_methods: Iterable[str] = ()) -> None:
    """Writes results.json and summary.md from the comparisons in finished units."""
    methods = (*METHODS, *own_methods)
    compared = {
        method: from_rows(run.read_json(tested_unit(method), COMPARED_FILE))
        for method in methods
        if run.is_done(tested_unit(method))
    }
    task = run.read_records(HELD_OUT, Trajectory)[0].task
    rows = [
        result_row(
            {"method": method, "task": task, "split": SPLIT, "metric": metric}, interval, seed
        )
        for method, own in compared.items()
        for metric, interval in (
            ("agreement", agreement(own)),
            ("expert_logprob", expert_logprob(own)),
        )
    ]
    write_both(run, rows, summary(run, methods, compared))


def summary(run: Run, methods: Sequence[str], compared: dict[str, list[Compared]]) -> str:
    """A table of the chosen rounds, and in plain words what beat what and what is not known."""
    width = max(22, *(len(method_label(method)) + 2 for method in compared))
    lines = [
        f"{'method':<{width}}{'round':>6}{'agreement (95 % interval)':>28}"
        f"{'expert log-prob':>18}{'steps':>7}{'n':>5}"
    ]
    chosen = {method: run.read_json(tested_unit(method), CHOSEN_FILE) for method in compared}
    for method, own in compared.items():
        logprob = expert_logprob(own).mean
        lines.append(
            f"{method_label(method):<{width}}{chosen[method]:>6}{_text(agreement(own)):>28}"
            f"{'-' if logprob is None else f'{logprob:.2f}':>18}"
            f"{sum(c.steps for c in own):>7}{len(own):>5}"
        )
    lines.append("")
    for method in methods:
        if stopped := run.config["data"].get(method, {}).get("stopped"):
            lines.append(f"{method_label(method)} was stopped: {stopped}.")
        if chosen.get(method) == 0 and (method not in METHODS or METHODS[method].has_rounds):
            lines.append(
                f"{method_label(method)}: no round agreed with the expert more often than the "
                "novice, so this is the novice itself."
            )
    for method in REFLECTIONS:
        if method in compared:
            # A method whose best round is the novice has nothing to compare with it.
            others = [
                other
                for other in compared
                if other not in REFLECTIONS and (chosen[method] or chosen[other])
            ]
            lines += [_against(method, other, compared) for other in others]
    best = best_unit(run, [m for m in compared if m != NOVICE])
    lines += [
        "",
        f"Highest agreement: {unit_path(best)}.",
        "",
        "Agreement is the share of held-out expert steps in which the agent's most likely action "
        "is the expert's. Expert log-prob is the mean log-probability of the expert's actions, in "
        "nats. Rounds are chosen by agreement, since the agent acts by its most likely action; on "
        "the same trajectories, so figures of chosen rounds are slightly too high. Intervals are "
        f"over the {len(compared[NOVICE])} held-out trajectories (n).",
        "",
        "Not measured: success. There was no environment, so nothing says how often an agent "
        "reaches the goal, or what it does after a mistake of its own: other actions than the "
        "expert's may be as good, and a single wrong one may be fatal. With --env the agents are "
        "also compared by what they achieve.",
    ]
    return "\n".join(lines) + "\n"


def _against(method: str, other: str, compared: dict[str, list[Compared]]) -> str:
    """One sentence on the paired difference in agreement."""
    gain = agreement_gain(compared[method], compared[other])
    name, against = method_label(method), method_label(other)
    if gain.mean is None:
        return f"{name} and {against} have no held-out trajectory in common."
    points = f"{100 * gain.mean:+.1f} percentage points"
    if gain.low is None or gain.high is None:
        points += ", too few trajectories for an interval"
        is_clear = False
    else:
        points += f", paired 95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        is_clear = gain.low > 0
    if gain.mean <= 0:
        return f"{name} does NOT agree with the expert more often than {against} ({points})."
    if is_clear:
        return f"{name} agrees with the expert clearly more often than {against} ({points})."
    chance = "but this may be chance"
    return f"{name} agrees with the expert more often than {against}, {chance} ({points})."


def _text(interval: Interval) -> str:
    if interval.mean is None:
        return "-"
    mean = f"{100 * interval.mean:.1f} %"
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
