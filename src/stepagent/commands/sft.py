"""`stepagent sft`: a novice from demonstrations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.bounds import COUNT, check_bounds
from stepagent.commands.demonstrations import read_demonstrations, render_demonstrations
from stepagent.commands.inputs import files_of
from stepagent.commands.models import load_policy, prepare
from stepagent.commands.outputs import check_folder
from stepagent.commands.parsing import UsageError, run_command
from stepagent.files.atomic import atomic_folder
from stepagent.model.device import ComputeConfig
from stepagent.model.lora import LoRAConfig
from stepagent.scratch.small_model import TinyConfig, build_tiny_model

DEFAULT, DEFAULT_TINY = SFTConfig(), TinyConfig()
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
) -> None:
    """Trains a policy to do what the expert did (behavioural cloning).

    Reads trajectories, one per line of JSON, and MODEL if it is given; writes the policy to the new
    folder OUT, as a Hugging Face model folder, or an adapter folder with LoRA.

    For example: stepagent sft --demonstrations demonstrations.jsonl --out novice --sft.epochs 20

    Args:
        demonstrations: The expert's trajectories.
        out: Folder for the policy.
        model: The model to begin with, a Hugging Face folder, a GGUF file, or the id of one on the
            hub; without it a tiny one is made from scratch.
        compute: Device, precision and memory.
        lora: Low-rank adapters instead of the whole model.
        skip_invalid: Leave out and list lines that are no valid trajectory, and trajectories that
            are longer than the model's context.
        overwrite: Replace OUT if it exists.
        seed: Of the model and the data order.
        config: Settings of the training.
        tiny: Size of the model from scratch.
    """
    check_bounds(config, {"epochs": COUNT})
    inputs = [demonstrations, *(files_of(model) if model else [])]
    check_folder(out, inputs=inputs, overwrite=overwrite)
    if lora.rank and model is None:
        raise UsageError("--lora.rank: a model made from scratch has nothing to adapt")
    prepare()
    trajectories = read_demonstrations(demonstrations, skip_invalid=skip_invalid)
    with atomic_folder(out, replace=overwrite) as folder:
        if model is None:
            build_tiny_model(trajectories, tiny, seed=seed, folder=folder)
        policy = load_policy(model or str(folder), compute, lora, seed=seed)
        rendered = render_demonstrations(policy, trajectories, skip_invalid=skip_invalid)
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
