"""The figures of the report as inline SVG, in the colours of the page that holds them.

Matplotlib draws with placeholder colours which become CSS variables, so one figure serves light and
dark mode. Text stays text. The same input gives the same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, GRID, EXPERT, AGENT = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0a0b{k:02x}" for k in range(8))
CSS_COLOURS = {INK: "currentColor", GRID: "var(--line)"}
CSS_COLOURS |= {EXPERT: "var(--expert)", AGENT: "var(--agent)"}
CSS_COLOURS |= {colour: f"var(--series-{k})" for k, colour in enumerate(SERIES)}
MARKERS = "os^DvPX*"
DASHES = ("-", "--", ":", "-.")
MAX_POINTS = 200
drawing = mpl.rc_context({"font.size": 8, "svg.fonttype": "none", "text.parse_math": False})


def marker_of(series: int) -> str:
    """The marker of a series; the second eight series, which repeat the colours, differ in it."""
    return MARKERS[(series + series // 8) % 8]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; `low` and `high`, if given, are its interval at each point."""

    series: int
    """Colour and marker: the method."""
    style: int = 0
    """Dashes: the run."""
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class IntervalRow:
    """One row of an interval plot: a method with one (mean, low, high) for each run."""

    label: str
    series: int
    intervals: Sequence[tuple[float, float | None, float | None] | None]


@drawing
def line_plot(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, small: bool = False
) -> Markup:
    """Curves with markers, or thin curves without for the small ones."""
    figure, axes = _figure(2.7 if small else 3.5, 1.75 if small else 2.3)
    for line in lines:
        colour, x, y = SERIES[line.series % 8], np.asarray(line.x), np.asarray(line.y)
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
        if small:
            x, y = _thinned(x), _thinned(y)
        marker = None if small and len(x) > 1 else marker_of(line.series)
        axes.plot(
            x,
            y,
            color=colour,
            linestyle=DASHES[line.style % 4],
            linewidth=1 if small else 1.7,
            marker=marker,
            markersize=4.5,
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if not small:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return _svg(figure, f"{title}: {y_label} over {x_label}")


@drawing
def interval_plot(rows: Sequence[IntervalRow], *, title: str, x_label: str) -> Markup:
    """Means with 95 % intervals, one row for each method, one mark for each run."""
    runs = max(len(row.intervals) for row in rows)
    figure, axes = _figure(4.6, 0.75 + len(rows) * (0.28 + 0.12 * runs))
    for y, row in enumerate(rows):
        for k, interval in enumerate(row.intervals):
            if interval is None:
                continue
            mean, low, high = interval
            colour, place = SERIES[row.series % 8], y + 0.22 * (k - (runs - 1) / 2)
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=colour, linewidth=2.2, alpha=0.55)
            marker = marker_of(row.series)
            axes.plot([mean], [place], color=colour, marker=marker, markersize=6.5)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x_label)
    return _svg(figure, f"{title}: {x_label} of each method with 95 % intervals")


_FAR = 1e100
"""Rewards are clipped to this size before drawing: larger axes overflow to infinity."""


@drawing
def reward_histogram(expert: Sequence[float], agent: Sequence[float], *, title: str) -> Markup:
    """Step rewards of expert and agent actions over the same bins, as shares of each."""
    figure, axes = _figure(3.5, 2.1)
    expert, agent = (np.clip(values, -_FAR, _FAR).tolist() for values in (expert, agent))
    together = np.concatenate([np.asarray(expert, dtype=float), np.asarray(agent, dtype=float)])
    low, high = float(together.min()), float(together.max())
    if high - low < 1e-9 * max(abs(low), abs(high), 1.0):  # too narrow to cut into bins
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 31)
    for values, colour, dash in ((expert, EXPERT, "-"), (agent, AGENT, "--")):
        if values:
            share = np.histogram(values, edges)[0] / len(values)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.22)
            axes.stairs(share, edges, color=colour, linewidth=1.6, linestyle=dash)
    axes.set_xlabel("step reward")
    axes.set_ylabel("share of actions")
    return _svg(figure, f"{title}: step rewards of expert and agent actions")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(color=GRID, labelcolor=INK, length=2)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _svg(figure: Figure, description: str) -> Markup:
    buffer = io.StringIO()
    # The salt makes element ids equal between writes and different between the figures of a page.
    with mpl.rc_context({"svg.hashsalt": description}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"| ?font-family: [^;"]*;', "", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    for placeholder, colour in CSS_COLOURS.items():
        text = text.replace(placeholder, colour)
    label = escape(description)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most `MAX_POINTS` values: means of neighbours."""
    if len(values) <= MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])
