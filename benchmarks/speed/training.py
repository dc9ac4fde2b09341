"""One optimizer step at a time on the same steps of a trajectory: ours, and TRL's."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import path_logprobs
from stepagent.model.policy import Policy, open_tokenizer
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.types import Trajectory

from .material import SEED, open_policy, practised_tree, rows_of
from .measuring import LOSS_TOLERANCE, Row, alone, best_of, check_close, forget_peak, peak_mb, ratio

Loss = Literal["dpo", "sft"]
BATCH_SIZES = (1, 2, 4)
BETA, LEARNING_RATE = 0.1, 1e-4
OPTIMIZER = OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=0.0, warmup_share=0.0)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained on all steps of one trajectory in each update."""

    model: Path
    adapter: Path | None
    """The LoRA adapter that is trained; None trains the whole model."""
    trajectory: Trajectory
    loss: Loss
    precision: str
    updates: int = 3


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one side did."""

    losses: list[float]
    """Before each update."""
    seconds: list[float]
    """Of each update after the first; of the first if it is the only one."""
    peak_mb: float
    """Of the process while it trains, libraries and model included."""
    rise_mb: float
    """How much of it came on top of libraries and model."""


class Ticks:
    """Notes the time between updates."""

    def __init__(self) -> None:
        self.before = forget_peak()
        self.times = list[float]()

    def tick(self) -> None:
        """An update is done, or the only one begins."""
        self.times.append(time.perf_counter())

    def trained(self, losses: list[float]) -> Trained:
        """All updates are done."""
        peak = peak_mb()
        return Trained(
            losses=losses,
            seconds=[b - a for a, b in pairwise(self.times)],
            peak_mb=peak,
            rise_mb=peak - self.before,
        )


def train(policy: Policy, training: Training, log: Callable[[Metrics], None]) -> None:
    """Our side: the updates on the prefix tree."""
    if training.loss == "sft":
        plan = SFTConfig(optimizer=OPTIMIZER, epochs=training.updates, batch_size=1)
        sft(policy, [policy.render(training.trajectory)], plan, seed=SEED, log=log)
        return
    tree = practised_tree(policy, training.trajectory)
    config = DPOConfig(
        optimizer=OPTIMIZER, beta=BETA, sft_coef=0.0, epochs=training.updates, batch_size=1
    )
    dpo(policy, [tree], config, seed=SEED, log=log)


def ours(training: Training) -> Trained:
    """Opens the policy and trains it."""
    policy = open_policy(training.adapter or training.model, training.precision)
    losses: list[float] = []
    ticks = Ticks()

    def log(metrics: Metrics) -> None:
        ticks.tick()
        losses.append(metrics["loss"])

    train(policy, training, log)
    return ticks.trained(losses)


def rows(training: Training) -> list[dict[str, Any]]:
    """The same steps in TRL's formats, each with its whole history."""
    policy = open_policy(training.adapter or training.model, training.precision)
    tree = practised_tree(policy, training.trajectory)
    pairs = rows_of(tree)
    if training.loss == "dpo":
        (reference,) = path_logprobs(policy, [tree])
        both = zip(reference[::2].tolist(), reference[1::2].tolist(), strict=True)
        names = ("ref_chosen_logps", "ref_rejected_logps")
        return [
            pair | dict(zip(names, found, strict=True))
            for pair, found in zip(pairs, both, strict=True)
        ]
    return [
        {
            "input_ids": [*p["prompt_ids"], *p["chosen_ids"]],
            "completion_mask": [0] * len(p["prompt_ids"]) + [1] * len(p["chosen_ids"]),
        }
        for p in pairs
    ]


def trl(training: Training, rows: list[dict[str, Any]], batch_size: int) -> Trained:
    """TRL's trainer on these rows, gradients accumulated over batches of them.

    It is given its best: reference log-probabilities, so its first loss is ours only if it reads
    the same; no gradient checkpointing; with LoRA in bfloat16 the frozen weights in bfloat16, so
    that autocast does not cast them again.
    """
    from datasets import Dataset
    from peft import PeftModel
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig as TRLDPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig as TRLSFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class FromIds(DPOTrainer):
        """Takes token ids, as `SFTTrainer` does, and reference log-probabilities."""

        def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
            return dataset

        def _precompute_ref_logps(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
            return dataset

    class Clock(TrainerCallback):
        """Ticks after each update, and before it if it is the only one."""

        def on_train_begin(self, *_: object, **__: object) -> None:
            if training.updates == 1:
                ticks.tick()

        def on_step_end(self, *_: object, **__: object) -> None:
            ticks.tick()

    is_half = training.precision == "bfloat16"
    dtype = torch.bfloat16 if is_half and training.adapter else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(training.model, dtype=dtype)
    if training.adapter:
        model = PeftModel.from_pretrained(model, training.adapter, is_trainable=True)
    kinds: dict[Loss, tuple[Any, Any, dict[str, Any]]] = {
        "dpo": (FromIds, TRLDPOConfig, {"beta": BETA, "precompute_ref_log_probs": True}),
        "sft": (SFTTrainer, TRLSFTConfig, {"completion_only_loss": True}),
    }
    trainer_of, config_of, own = kinds[training.loss]
    name = str(training.model)
    ticks = Ticks()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = trainer_of(
            model=model,
            args=config_of(
                output_dir=folder,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="linear",
                warmup_steps=0,
                weight_decay=0.0,
                max_grad_norm=1.0,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=-(-len(rows) // batch_size),
                num_train_epochs=training.updates,
                max_length=None,
                gradient_checkpointing=False,
                bf16=is_half,
                use_cpu=not torch.cuda.is_available(),
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=SEED,
                **own,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=open_tokenizer(name, name),
            callbacks=[Clock()],
        )
        trainer.train()
    return ticks.trained([row["loss"] for row in trainer.state.log_history if "loss" in row])


def best_batch_size(training: Training) -> int:
    """TRL's fastest batch size in one update on four of the rows, from short to long."""
    every = rows(training)
    some = every[:: -(-len(every) // max(BATCH_SIZES))]

    def seconds(batch_size: int) -> float:
        return alone(trl, replace(training, updates=1), some, batch_size).seconds[0]

    # A mean over batches is the mean over all pairs only if the batches are equally large.
    return best_of([size for size in BATCH_SIZES if len(every) % size == 0], seconds)


def check_equal(training: Training, mine: Trained, other: Trained) -> float:
    """The largest difference of the losses; raises `Unequal` if it is more than rounding.

    Ours may have more updates than the other side.
    """
    what = f"{training.loss} of {training.model.name}, {training.precision}"
    losses = mine.losses[: len(other.losses)]
    return check_close(what, losses, other.losses, LOSS_TOLERANCE[training.precision])


def side_by_side(training: Training, batch_size: int, updates: int, every: int) -> Row:
    """Both sides, each in its own process, and how they compare; TRL makes so many updates.

    Above 1, `every` gives TRL only every so many of the steps, from the first, and its seconds are
    multiplied by this number. That favours TRL: the steps left out have longer histories.
    """
    mine = alone(ours, training)
    some = rows(training)[::every]
    other = alone(trl, replace(training, updates=updates), some, batch_size)
    other = replace(other, seconds=[every * seconds for seconds in other.seconds])
    difference = check_equal(training, mine, other)
    return {
        "seconds": round(median(mine.seconds), 3),
        "TRL": round(median(other.seconds), 3),
        "times": ratio(mine.seconds, other.seconds),
        "peak MB": round(mine.peak_mb),
        "TRL MB": round(other.peak_mb),
        "memory": ratio([mine.peak_mb], [other.peak_mb]),
        "above model": ratio([mine.rise_mb], [other.rise_mb]),
        "batch": batch_size,
        "TRL's": "all" if every == 1 else f"1 in {every}",
        "loss differs": float(f"{difference:.1g}"),
        "all": {"ours": asdict(mine), "trl": asdict(other)},
    }
