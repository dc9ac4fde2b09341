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
    """Rows of the real model, then of the small one in float32.

    What TRL takes minutes for is left out: of the real model the long trajectory but for DPO with
    LoRA in the last precision, whole-model DPO and all SFT in the other one. There TRL makes only
    one update, but two in the first row.
    """
    last = setup.precisions[-1]
    every = tuple(product(("LoRA", "whole"), reversed(setup.precisions)))
    real_kinds: dict[Loss, Kinds] = {
        "dpo": tuple(kind for kind in every if kind[0] == "LoRA" or kind[1] == last),
        "sft": tuple(kind for kind in every if kind[1] == last),
    }
    small_kinds = (("LoRA", "float32"), ("whole", "float32"))
    for loss, kinds in real_kinds.items():
        plan = ((setup.short, kinds), (setup.long, kinds[:1] if loss == "dpo" else ()))
        yield from _compared(setup, setup.real, loss, plan, 1, 2 if loss == "dpo" else 1)
    for loss in real_kinds:
        plan = ((setup.short, small_kinds), (setup.long, small_kinds[:1]))
        yield from _compared(setup, setup.small, loss, plan, 3, 3)


def _compared(
    setup: Setup,
    model: Path,
    loss: Loss,
    plan: Sequence[tuple[Trajectory, Kinds]],
    updates: int,
    first_updates: int,
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
            compared = side_by_side(training, batch_size, count)
            yield first | {"trained": kind, "precision": precision} | compared
