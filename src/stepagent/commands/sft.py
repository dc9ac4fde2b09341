"""`stepagent sft`: fine-tunes a model on demonstrations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.bounds import COUNT, check_bounds
from stepagent.commands.demonstrations import read_demonstrations, render_demonstrations
from stepagent.commands.models import load_policy, prepare
from stepagent.commands.outputs import check_folder, made_folder
from stepagent.commands.parsing import UsageError, run_command
from stepagent.experiment.inputs import files_of
from stepagent.experiment.shared_batches import warn_of_small_batches
from stepagent.model.device import ComputeConfig
from stepagent.model.lora import LoRAConfig
from stepagent.processes import ranks
from stepagent.scratch.pretraining import PretrainConfig, pretrain
from stepagent.scratch.small_model import TinyConfig, build_tiny_model

DEFAULT, DEFAULT_TINY, DEFAULT_PRETRAIN = SFTConfig(), TinyConfig(), PretrainConfig()
DEFAULT_COMPUTE, DEFAULT_LORA = ComputeConfig(), LoRAConfig()


def train_novice(
    *,
    demonstrations: Path,
    out: Path,
    model: str | None = None,
    compute: ComputeConfig = DEFAULT_COMPUTE,
    lora: LoRAConfig = DEFAULT_LORA,
    skip_invalid: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    config: Annotated[SFTConfig, tyro.conf.arg(name="sft")] = DEFAULT,
    tiny: TinyConfig = DEFAULT_TINY,
    pretraining: Annotated[PretrainConfig, tyro.conf.arg(name="pretrain")] = DEFAULT_PRETRAIN,
) -> None:
    """Fine-tunes a model on demonstrations (behavioural cloning); the result is a novice.

    Reads trajectories, one JSON object per line, and MODEL if it is given. Writes the policy to the
    new folder OUT: a Hugging Face model folder, or an adapter folder with LoRA. Without MODEL a
    small model is made from scratch and pretrained on the demonstrations first, as in a run.

    For example: stepagent sft --demonstrations demonstrations.jsonl --out novice --sft.epochs 20

    Args:
        demonstrations: File with the expert's trajectories.
        out: Folder for the policy.
        model: The model to fine-tune: a Hugging Face folder, a GGUF file, or the id of a model on
            the hub. Default: a small model made from scratch.
        compute: Device, precision and memory.
        lora: Train a low-rank adapter instead of the whole model.
        skip_invalid: Leave out invalid lines and trajectories that do not fit into the model's
            context, and list them.
        overwrite: Replace OUT if it exists.
        seed: Seed of the initial weights and the order of the data.
        config: Settings of the fine-tuning.
        tiny: Size of the model made from scratch.
        pretraining: Pretraining of the model made from scratch.
    """
    check_bounds(config, {"epochs": COUNT})
    inputs = [demonstrations, *(files_of(model) if model else [])]
    check_folder(out, inputs=inputs, overwrite=overwrite)
    if lora.rank and model is None:
        raise UsageError("--lora.rank: a model made from scratch has nothing to adapt")
    prepare()
    warn_of_small_batches(config)
    trajectories = read_demonstrations(demonstrations, skip_invalid=skip_invalid)
    with made_folder(out, replace=overwrite) as folder:
        if model is None and ranks.is_first():
            build_tiny_model(trajectories, tiny, seed=seed, folder=folder)
        policy = load_policy(model or str(ranks.from_first(folder)), compute, lora, seed=seed)
        rendered = render_demonstrations(policy, trajectories, skip_invalid=skip_invalid)
        if model is None:
            fitting = [d.trajectory for d in rendered]
            pretrain(policy, fitting, pretraining, seed=seed, log=lambda _: None)
        losses: list[float] = []
        sft(policy, rendered, config, seed=seed, log=lambda m: losses.append(m["loss"]))
        policy.save(folder)
    print(
        f"{out}: {len(rendered)} trajectories, {len(losses)} updates, "
        f"loss {losses[0]:.3f} to {losses[-1]:.3f} nats per token"
    )


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(train_novice, "sft", args)
