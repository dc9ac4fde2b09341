"""How long a stage takes when several processes share it."""

from dataclasses import dataclass
from math import ceil

from stepagent.experiment.planning.costs import Costs
from stepagent.experiment.planning.work import Data, Stage
from stepagent.model.generation import DECODED_TOGETHER
from stepagent.model.packs import budget_to_share


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Who computes."""

    processes: int
    budget: int
    """Tokens in a row."""
    longest: int
    """Tokens of the longest of the actions that are decoded together."""
    sent_by_update: float = 0.0
    """Seconds in which the gradients of an update are summed; 0 if that is not known."""
    sent_by_row: float = 0.0
    """Seconds in which sharded layers are gathered for a row, and their gradients summed."""


def seconds(stage: Stage, costs: Costs, data: Data, layout: Layout) -> float:
    """Of the slowest process, without waiting for environments."""
    shared = layout.processes * share_at_work(stage, data, layout)
    tokens = stage.tokens(data)
    if stage.kind == "practice":
        steps = layout.longest * _groups(stage, data)
        decoding = costs.branch * stage.sampled(data) + costs.step * steps
        return (costs.prefill * tokens + decoding) / shared
    rows = _rows(stage.trees, stage, data, layout)
    each = costs.read if stage.kind == "read" else costs.train
    computing = (each * tokens + layout.sent_by_row * rows) / shared
    return computing + stage.updates * (costs.update + layout.sent_by_update)


def share_at_work(stage: Stage, data: Data, layout: Layout) -> float:
    """Share of the time in which a process works: units of work cannot be split."""
    if stage.kind == "practice":
        units = _groups(stage, data)
    else:
        units = _rows(stage.batch or stage.trees, stage, data, layout)
    return units / (layout.processes * ceil(units / layout.processes))


def _rows(trees: int, stage: Stage, data: Data, layout: Layout) -> int:
    """Rows of so many trees; those of a batch are laid out together."""
    size, budget = data.tree(stage.actions), layout.budget
    if stage.batch:
        budget = budget_to_share([size] * stage.batch, budget, layout.processes)
    return ceil(trees / max(1, budget // size))


def _groups(stage: Stage, data: Data) -> int:
    """Groups of trajectories that are decoded together."""
    together = max(1, DECODED_TOGETHER // (data.steps * stage.actions))
    return ceil(stage.trees / together)
