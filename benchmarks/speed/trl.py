"""Reflection (step-wise DPO) against TRL's `DPOTrainer`, SFT against its `SFTTrainer`.

Each update takes all steps of one trajectory: on our side one prefix tree, on TRL's a row (or two)
with the whole history for each step, at its fastest batch size.
"""

from collections.abc import Iterator
from itertools import product

from .material import Setup
from .measuring import Row
from .training import Loss, Training, best_batch_size, side_by_side

TITLE = "Training beside TRL: one update after the first, on all steps of one trajectory"


def answer(setup: Setup) -> Iterator[Row]:
    """A row for each model, loss, length, kind of training and precision.

    The long trajectory is trained with LoRA in the last precision only. TRL takes up to minutes for
    an update of the real model, so it makes only one, but two where all steps of the short
    trajectory are compared with LoRA in the last precision.
    """
    losses: tuple[Loss, ...] = ("dpo", "sft")
    kinds = ("LoRA", "whole")
    for name, model in setup.models.items():
        for loss, trajectory in product(losses, (setup.short, setup.long)):
            batch_size = None
            for kind, precision in product(kinds, reversed(setup.precisions)):
                training = Training(
                    model=model,
                    adapter=setup.adapters[model] if kind == "LoRA" else None,
                    trajectory=trajectory,
                    loss=loss,
                    precision=precision,
                )
                is_first = batch_size is None
                batch_size = batch_size or best_batch_size(training)
                is_slow = model == setup.real and (trajectory == setup.long or not is_first)
                updates = 1 if is_slow else 2 if model == setup.real else training.updates
                compared = side_by_side(training, batch_size, updates)
                first = {"model": name, "loss": loss, "steps": len(trajectory.steps)}
                yield first | {"trained": kind, "precision": precision} | compared
                if trajectory == setup.long:
                    break
