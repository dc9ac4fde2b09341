"""Parameter updates for any loss: one optimizer step for each batch of prefix trees."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import get_linear_schedule_with_warmup

from stepagent.bounds import AMOUNT, SHARE, Above, check_bounds
from stepagent.console.progress import track
from stepagent.model.device import until_all_fit
from stepagent.model.forward import Layers
from stepagent.model.memory import keep_freed_memory
from stepagent.model.sharding import local, total_norm
from stepagent.processes import ranks

Metrics = dict[str, float]

Measured = Mapping[str, float | Tensor]
"""Metrics of a part of a loss. Tensors are read after the backward pass of the part: earlier, a GPU
would have to finish the forward pass before it is given more work."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and linear decay to zero."""

    learning_rate: float
    """Peak learning rate, reached after warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_share: float = 0.1
    """Share of all updates used for warm-up."""
    max_grad_norm: float = 1.0
    """Larger gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(
            self,
            {
                "learning_rate": Above(0),
                "weight_decay": AMOUNT,
                "warmup_share": SHARE,
                "max_grad_norm": Above(0),
            },
        )


_LOSS = "_loss"
"""Key of the differentiated sum among the metrics, until it is checked."""

MOST_SKIPPED = 3
"""A stage fails after this many non-finite updates in a row, since it will not recover."""


class TrainingError(RuntimeError):
    """A training stage failed; the message is one line."""


class Updater:
    """The optimizer and schedule of one training stage."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        config: OptimizerConfig,
        num_updates: int,
        *,
        stage: str = "Training",
        apart: Iterable[nn.Parameter] = (),
    ) -> None:
        """Plans `num_updates` updates; `stage` names the stage in errors.

        `apart` are parameters that share no gradient with the others. Each of the two sets is
        clipped by its own norm, so that a large error in one does not slow the other down.
        """
        self.stage = stage
        self.done, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self.max_grad_norm = config.max_grad_norm
        self._sets = [[p for p in own if p.requires_grad] for own in (parameters, apart)]
        # One kernel cannot update sharded weights together with others.
        groups = [
            {"params": [p for p in own if isinstance(p, DTensor) == sharded]}
            for own in self._sets
            for sharded in (False, True)
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = get_linear_schedule_with_warmup(
            self.optimizer, int(config.warmup_share * num_updates), num_updates
        )

    def update(
        self, layers: Layers, losses: Callable[[], Iterable[tuple[Tensor, Measured]]]
    ) -> Metrics:
        """Takes one optimizer step on the sum of the losses; returns the metrics.

        Each part of the loss is freed before the next one is computed. The metrics of the parts are
        summed, so each part must be weighted by its share. If memory runs out, the layers' token
        budget is halved and the step is begun again.

        A non-finite loss or gradient changes no weight: the update is skipped and counted, and the
        learning rate schedule continues. Raises `TrainingError` after `MOST_SKIPPED` skipped
        updates in a row, or if an update leaves non-finite weights, and `OutOfMemory` if halving
        the budget is not enough.
        """

        def halve() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            layers.halve_budget()

        found = until_all_fit(lambda: self._gradient(losses()), halve, in_step=layers.is_sharded)
        total = ranks.summed(found)
        for parameters in self._sets:
            # FSDP has summed those of sharded weights.
            ranks.sum_gradients([p for p in parameters if not isinstance(p, DTensor)])
        loss = total.pop(_LOSS, 0.0)
        norms = [self._clip(parameters) for parameters in self._sets]
        total |= {"learning_rate": self.schedule.get_last_lr()[0], "grad_norm": norms[0]}
        self._step(layers, all(map(math.isfinite, (loss, *norms))))
        return total | {"skipped_updates": self.skipped}

    def _step(self, layers: Layers, is_finite: bool) -> None:
        """Steps the optimizer, unless the update is skipped, and the schedule."""
        self.done += 1
        if is_finite:
            self.optimizer.step()
            layers.publish()
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            # If the first update is skipped, PyTorch warns of a wrong order of calls.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                f"{self.stage}: the loss or gradient of update {self.done} was not finite, as in "
                f"the {MOST_SKIPPED - 1} before it; a smaller learning rate, or "
                "--compute.precision float32, may help"
            )
        if is_finite and not self._has_finite_weights():
            raise TrainingError(
                f"{self.stage}: update {self.done} left weights that are not finite; a smaller "
                "learning rate may help"
            )

    def _clip(self, parameters: Sequence[nn.Parameter]) -> float:
        """Scales the gradients down to the largest norm allowed; returns their norm before."""
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        if float(norm) > self.max_grad_norm:
            for group in self.optimizer.param_groups:
                own = [p for p in group["params"] if any(p is q for q in parameters)]
                nn.utils.clip_grads_with_norm_(own, self.max_grad_norm, norm)
        return float(norm)

    def _has_finite_weights(self) -> bool:
        # A norm is one pass. It is finite only if all weights are, but very large ones overflow.
        return all(
            math.isfinite(float(total_norm([p.detach() for p in weights])))
            or ranks.all_of(all(bool(local(p).isfinite().all()) for p in weights))
            for weights in self._sets
        )

    def _gradient(self, losses: Iterable[tuple[Tensor, Measured]]) -> Metrics:
        total: Metrics = {}
        for loss, metrics in losses:
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in {_LOSS: loss, **metrics}.items():
                number = value.item() if isinstance(value, Tensor) else value
                total[name] = total.get(name, 0.0) + number
        return total


def num_batches(count: int, batch_size: int) -> int:
    """Number of batches in one pass over `count` items."""
    return -(-count // batch_size)


class Passes(Protocol):
    """The part that the configs of all training stages have in common."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW settings."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the items."""
        ...

    @property
    def batch_size(self) -> int:
        """Items in each update."""
        ...


def fit(
    layers: Layers,
    losses: Callable[[Sequence[int]], Iterable[tuple[Tensor, Measured]]],
    count: int,
    config: Passes,
    *,
    stage: str,
    seed: int,
    log: Callable[[Metrics], None],
    apart: Iterable[nn.Parameter] = (),
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the layers in place: `config.epochs` passes over `count` items, in shuffled batches.

    `losses` maps the indices of a batch to the parts of its loss, as for `Updater.update`, which
    may raise; `log` receives the metrics of every update. The order of the items depends only on
    the seed and the pass. Training stops after a pass if `enough` returns true.
    """
    keep_freed_memory()
    total = config.epochs * num_batches(count, config.batch_size)
    updater = Updater(layers.parameters(), config.optimizer, total, stage=stage, apart=apart)

    def batches() -> Iterator[list[int]]:
        for epoch in range(config.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
            for start in range(0, count, config.batch_size):
                yield order[start : start + config.batch_size]
            if enough():
                return

    for batch in track(batches(), stage, total=total):
        log(updater.update(layers, partial(losses, batch)))
