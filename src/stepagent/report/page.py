"""One self-contained HTML page from run folders: scores, learning curves and practised steps.

It only reads run folders and imports no torch, so it works on any machine and during a run. Text
from models, data and environments is escaped, and control characters are made visible.

    stepagent report runs/seed-0 runs/seed-1 --out report.html
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from pydantic import JsonValue

from stepagent.files.atomic import atomic_write
from stepagent.methods import method_label
from stepagent.report.runs import ReportError, RunView, read_run, visible
from stepagent.report.scores import (
    CURVES,
    final_episodes,
    histograms,
    labels,
    learning_curves,
    methods_of,
    paired,
    score_tables,
    step_rewards,
    training_curves,
)
from stepagent.types import PracticedStep, Trajectory

MAX_TRAJECTORIES, MAX_PRACTISED, MAX_EPISODES, MAX_TRANSCRIPT = 40, 6000, 20, 50
"""Most trajectories, practised steps, episodes per method and steps per transcript on a page."""

GENERATOR = b'<meta name="generator" content="StepAgent report">'
"""Marks a page as a report, which may be replaced."""


@dataclass(frozen=True)
class Attempt:
    """What a method's policy did in one expert state in one round."""

    method: str
    round: int
    expert_action: str
    expert_reward: float | None
    agent: tuple[tuple[str, float | None, int], ...]
    """Each distinct action with its step reward and how often it was sampled."""
    matches: int
    n: int
    scale: float
    """The reward at which a bar is full."""


@dataclass(frozen=True)
class State:
    """One step of a held-out expert trajectory with all attempts at it."""

    index: int
    observation: str | None
    """None if the run folder lacks the expert trajectory."""
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Practised:
    """A held-out expert trajectory with its steps in order."""

    id: str
    instruction: str
    states: tuple[State, ...]


@dataclass(frozen=True)
class Viewer:
    """The practised trajectories that fit on the page, and how many there are in all."""

    policies: tuple[tuple[str, int], ...]
    trajectories: tuple[Practised, ...]
    total: int


@dataclass(frozen=True)
class EpisodeTable:
    """Episodes of one method that fit on the page, failures first."""

    method: str
    split: str
    round: int | None
    trajectories: tuple[Trajectory, ...]
    total: int


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Writes the page of one or several runs to `out`, atomically."""
    if not runs:
        raise ReportError("expected at least one run folder")
    if out.is_dir():
        raise ReportError(f"{out}: is a folder; expected the name of an HTML file")
    page = _page([read_run(Path(run)) for run in runs])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise ReportError(f"{out}: cannot be written: {error.strerror}") from None


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """The number with a true minus sign, or a dash for None."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def bar(reward: float, scale: float) -> str:
    """CSS of a bar that grows from the middle, to the right if positive."""
    width = min(abs(reward) / scale, 1.0) * 50
    return f"left:{50.0 if reward >= 0 else 50 - width:.1f}%;width:{width:.1f}%"


def _page(runs: Sequence[RunView]) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    environment.filters |= {"number": number, "bar": bar, "csp_hash": _csp_hash}
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.filters["method"] = method_label
    source = resources.files("stepagent.report").joinpath("report.html").read_text(encoding="utf-8")
    methods = methods_of(runs)
    return environment.from_string(source).render(
        runs=runs,
        labels=labels(runs),
        methods=methods,
        facts=_facts(runs),
        tables=list(score_tables(runs, methods)),
        paired=list(paired(runs, methods)),
        curves=list(learning_curves(runs, methods)),
        curve_names=CURVES,
        training=list(training_curves(runs, methods)),
        histograms=list(histograms(runs)),
        viewers=[_viewer(run, len(runs)) for run in runs],
        episodes=[list(_episode_tables(run, methods, len(runs))) for run in runs],
        max_transcript=MAX_TRANSCRIPT,
    )


def _csp_hash(script: str) -> Markup:
    digest = hashlib.sha256(script.encode()).digest()
    return Markup(f"sha256-{base64.b64encode(digest).decode()}")


def _facts(runs: Sequence[RunView]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Facts by group, each with its value in every run."""
    groups: dict[str, list[dict[str, str]]] = {
        "Run": [],
        "Protocol": [],
        "Data": [],
        "Versions": [],
    }
    for run in runs:
        steps = sum(len(trajectory.steps) for trajectory in run.demonstrations)
        head = {"folder": run.path.resolve().name, "recipe": run.settings.recipe}
        head["seed"] = "–" if run.settings.seed is None else str(run.settings.seed)
        head["created"] = run.settings.created
        head["demonstrations"] = f"{len(run.demonstrations)} trajectories, {steps} steps"
        groups["Run"].append(head)
        groups["Protocol"].append(dict(_flat(run.settings.protocol)))
        groups["Data"].append(dict(_flat(run.settings.data)))
        groups["Versions"].append(dict(_flat(run.settings.versions)))
    return [
        (group, [(key, [facts.get(key) or "–" for facts in columns]) for key in _union(columns)])
        for group, columns in groups.items()
        if any(columns)
    ]


def _flat(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} · ")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _union(columns: Sequence[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for column in columns for key in column))


def _viewer(run: RunView, runs: int) -> Viewer:
    """The first trajectories with all attempts, up to the limits of the page."""
    known = {t.id: t for t in (*run.demonstrations, *run.held_out)}
    scales = {
        method: float(np.quantile(np.abs(rewards), 0.98)) if rewards else 0.0
        for method, rewards in _rewards_by_method(run).items()
    }
    states: dict[str, dict[int, list[Attempt]]] = {}
    for part in run.practice:
        for step in part.steps:
            attempts = states.setdefault(step.trajectory_id, {}).setdefault(step.step_index, [])
            attempts.append(_attempt(part.method, part.round, step, scales[part.method] or 1.0))
    shown: list[Practised] = []
    practised = 0
    for key, steps in states.items():
        practised += sum(len(attempts) for attempts in steps.values())
        if shown and (practised > MAX_PRACTISED / runs or len(shown) >= MAX_TRAJECTORIES / runs):
            break
        expert = known.get(key)
        in_order = tuple(
            State(index, _observation(expert, index), tuple(attempts))
            for index, attempts in sorted(steps.items())
        )
        shown.append(Practised(key, expert.instruction if expert else "", in_order))
    policies = tuple((part.method, part.round) for part in run.practice)
    return Viewer(policies, tuple(shown), len(states))


def _rewards_by_method(run: RunView) -> dict[str, list[float]]:
    rewards: dict[str, list[float]] = {}
    for part in run.practice:
        for side in step_rewards(part.steps):
            rewards.setdefault(part.method, []).extend(side)
    return rewards


def _attempt(method: str, round_number: int, step: PracticedStep, scale: float) -> Attempt:
    # Repeated samples of an action share a line, with a count.
    counts: dict[tuple[str, float | None], int] = {}
    for action in step.agent_actions:
        counts[action.text, action.reward] = counts.get((action.text, action.reward), 0) + 1
    return Attempt(
        method=method,
        round=round_number,
        expert_action=step.expert_action,
        expert_reward=step.expert_reward,
        agent=tuple((text, reward, count) for (text, reward), count in counts.items()),
        matches=sum(
            action.text.strip() == step.expert_action.strip() for action in step.agent_actions
        ),
        n=len(step.agent_actions),
        scale=scale,
    )


def _observation(expert: Trajectory | None, index: int) -> str | None:
    return expert.steps[index].observation if expert and index < len(expert.steps) else None


def _episode_tables(run: RunView, methods: Sequence[str], runs: int) -> Iterator[EpisodeTable]:
    """Test episodes of each method; dev episodes until there are any."""
    for method in methods:
        part = final_episodes(run, method, "test") or final_episodes(run, method, "dev")
        if part:
            worst_first = sorted(
                part.trajectories, key=lambda t: (t.success is True, t.score or 0.0, t.id)
            )
            shown = tuple(worst_first[: max(1, MAX_EPISODES // runs)])
            yield EpisodeTable(method, part.split, part.round, shown, len(part.trajectories))
