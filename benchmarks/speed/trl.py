"""Reflection (step-wise DPO) against TRL's `DPOTrainer`, SFT against its `SFTTrainer`.

Each update takes all steps of one trajectory: on our side one prefix tree, on TRL's a row (or two)
with the whole history for each step, at the batch size that is fastest on the short trajectory.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from stepagent.types import Trajectory

from .material import Setup
from .measuring import Row
from .training import Loss, Training, best_batch_size, side_by_side

Kinds = tuple[tuple[str, str], ...]
"""What is trained, and in which precision."""

TITLE = "Training beside TRL: one update after the first, on all steps of one trajectory"


def answer(setup: Setup) -> Iterator[Row]:
    """Rows of both models, whole and with LoRA, in each precision.

    The long trajectory is trained once for each loss; for the real model only with DPO, where TRL
    has every fourth step, since it takes minutes for all of them. TRL makes one update with the
    real model, but two in the first row, and three with the small one.
    """
    kinds = tuple(product(("LoRA", "whole"), reversed(setup.precisions)))
    losses: tuple[Loss, ...] = ("dpo", "sft")
    for loss in losses:
        is_dpo = loss == "dpo"
        plan = ((setup.short, kinds), (setup.long, kinds[:1] if is_dpo else ()))
        yield from _compared(setup, setup.real, loss, plan, 1, 2 if is_dpo else 1, 4)
    for loss in losses:
        plan = ((setup.short, kinds), (setup.long, kinds[:1]))
        yield from _compared(setup, setup.small, loss, plan, 3, 3, 1)


def _compared(
    setup: Setup,
    model: Path,
    loss: Loss,
    plan: Sequence[tuple[Trajectory, Kinds]],
    updates: int,
    first_updates: int,
    every_of_long: int,
) -> Iterator[Row]:
    """A row for each trajectory and kind of training; TRL makes so many updates."""
    batch_size = None
    for trajectory, kinds in plan:
        for kind, precision in kinds:
            training = Training(
                model=model,
                adapter=setup.adapters[model] if kind == "LoRA" else None,
                trajectory=trajectory,
                loss=loss,
                precision=precision,
            )
            count = first_updates if batch_size is None else updates
            batch_size = batch_size or best_batch_size(training)
            name = "small" if model == setup.small else model.name
            first = {"model": name, "loss": loss, "steps": len(trajectory.steps)}
            every = every_of_long if trajectory is setup.long else 1
            compared = side_by_side(training, batch_size, count, every)
            yield first | {"trained": kind, "precision": precision} | compared
