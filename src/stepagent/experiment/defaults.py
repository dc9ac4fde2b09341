"""Settings for a run without a recipe, chosen from the size of the model and of the data.

Nothing is measured and no weights are loaded. The numbers for 135 million parameters are those of
the recipe scienceworld-smollm2; learning rates fall with the size of the model, as is usual for
LoRA (QLoRA, arXiv 2305.14314, table 9, has 2e-4 up to 13 billion parameters and 1e-4 above).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

import torch
from transformers import AutoModelForCausalLM

from stepagent.algorithms.discriminator import DiscriminatorConfig
from stepagent.algorithms.ppo import PPOConfig
from stepagent.algorithms.sft import SFTConfig
from stepagent.evaluation import EvaluationConfig
from stepagent.experiment.config import DataConfig, TrainConfig
from stepagent.learners.implicit import ImplicitConfig
from stepagent.learners.inverse import InverseConfig
from stepagent.learners.sft import DAggerConfig, MoreSFTConfig
from stepagent.model.device import ComputeConfig
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.updates import OptimizerConfig
from stepagent.model.weights import UNREADABLE, WeightsError, open_config, place, reason
from stepagent.practice import InspectionConfig
from stepagent.scratch.pretraining import PretrainConfig
from stepagent.scratch.small_model import TinyConfig

LORA_RATES = ((0.5e9, 1e-3), (2e9, 5e-4), (13e9, 2e-4))
"""Learning rates of SFT with LoRA, each after the parameter count up to which it holds."""
LARGE_RATE = 1e-4
"""Learning rate of SFT with LoRA for larger models."""
CHECKPOINTED = 3e9
"""Parameter count from which activations are recomputed, so that more tokens fit on a GPU."""
MARGIN = 1.25
"""Longest action of the agent, relative to the expert's longest action."""
FEW = 50
"""Up to this many demonstrations, larger batches than one would give too few updates."""
MANY = 2000
"""From this many on, batches are so large that eight processes can share one."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the defaults depend on."""

    parameters: int | None
    """Parameters of the pretrained model; None for a model from scratch."""
    adapted: bool
    """Whether a pretrained model is trained with LoRA, not as a whole."""
    on_gpu: bool
    demonstrations: int
    """Number of trajectories to train on."""
    longest_action: int
    """Tokens of the expert's longest action."""
    takes_detours: bool
    """Whether there is an environment in which demonstrations can be replayed."""


def default_settings(known: Situation) -> TrainConfig:
    """The settings of a run without a recipe; any of them can be overridden.

    One round of every method makes as many updates as any other, so that they can be compared.
    """
    pretrained = known.parameters is not None
    batch = _batch_size(known)
    sft_rate = 1e-3 if known.parameters is None else _lora_rate(known.parameters)
    if pretrained and not known.adapted:
        sft_rate /= 10  # whole models need about a tenth of the rate of LoRA
    # The ratio of the recipes, in which reflection refines what SFT has learnt.
    rounds_rate = OptimizerConfig(learning_rate=sft_rate * (0.2 if pretrained else 0.3))
    acting = Decoding(max_new_tokens=_action_tokens(known.longest_action))
    # Why beta = 1 and an anchor of 10: docs/method.md.
    implicit = ImplicitConfig(
        beta=1.0, sft_coef=10.0, epochs=1, batch_size=batch, optimizer=rounds_rate
    )
    return TrainConfig(
        task=None,
        # Used with an environment's expert; half of its data is not cloned: docs/method.md.
        data=DataConfig(sft=50, reflection=100, shared=50, dev=12, test=40),
        model=TinyConfig(),
        lora=LoRAConfig(rank=16 if pretrained and known.adapted else 0),
        compute=ComputeConfig(
            gradient_checkpointing=known.on_gpu and (known.parameters or 0) >= CHECKPOINTED
        ),
        pretrain=_pretraining(known.demonstrations),
        sft=SFTConfig(
            epochs=3 if known.demonstrations <= 200 else 2,
            batch_size=batch,
            optimizer=OptimizerConfig(learning_rate=sft_rate),
        ),
        detours=1 if known.takes_detours else 0,
        rounds=2 if known.on_gpu or not pretrained else 1,
        inspection=InspectionConfig(num_actions=2, decoding=acting),
        sft_more=MoreSFTConfig(epochs=1, batch_size=batch, optimizer=rounds_rate),
        dagger=DAggerConfig(epochs=1, batch_size=batch, optimizer=rounds_rate),
        implicit=implicit,
        step_dpo=replace(implicit, sft_coef=0.0),
        inverse=InverseConfig(
            discriminator=DiscriminatorConfig(batch_size=batch, optimizer=rounds_rate),
            ppo=PPOConfig(epochs=1, batch_size=batch, optimizer=rounds_rate),
        ),
        # A greedy policy repeats an action that has just failed, up to the step limit.
        evaluation=EvaluationConfig(decoding=replace(acting, temperature=0.5)),
    )


def _lora_rate(parameters: int) -> float:
    return next((rate for most, rate in LORA_RATES if parameters <= most), LARGE_RATE)


def _batch_size(known: Situation) -> int:
    if known.demonstrations <= FEW:
        return 1
    if not known.on_gpu:
        return 2
    return 64 if known.demonstrations >= MANY else 8


def _action_tokens(longest: int) -> int:
    """A limit above the expert's longest action, a multiple of 8."""
    return max(16, 8 * ceil(longest * MARGIN / 8))


def _pretraining(demonstrations: int) -> PretrainConfig:
    """The fewer the demonstrations, the more passes learning to copy takes; see docs/method.md."""
    usual = PretrainConfig()
    epochs = max(usual.copying.epochs, min(24, 2400 // demonstrations))
    # A name in an action may come from anywhere in an observation: do not shorten them.
    return replace(
        usual, renamed=1.0, characters=1000, copying=replace(usual.copying, epochs=epochs)
    )


def count_parameters(source: str) -> int:
    """Parameters of a model by its folder or its id on the hub; reads its config.json only.

    Raises `WeightsError` if the config is not one of a causal language model.
    """
    config = open_config(source)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except UNREADABLE as error:
        raise WeightsError(f"{place(source)}: not a usable policy: {reason(error)}") from None
    return sum(parameter.numel() for parameter in model.parameters())


def described(known: Situation, config: TrainConfig) -> Iterator[str]:
    """The main settings of the run, one line of text each."""
    compute = config.compute
    precision = "" if compute.precision == "auto" else f", {compute.precision}"
    where = f"{compute.torch_device.type.upper()}{precision}"
    size = "from scratch" if known.parameters is None else f"{known.parameters / 1e6:,.0f} M"
    adapted = f"LoRA rank {config.lora.rank}" if config.lora.rank else "all weights"
    yield f"model: {size}, {adapted}, {where}"
    yield f"SFT: {_passes(config.sft)}"
    mistakes = "1 mistake" if config.detours == 1 else f"{config.detours} mistakes"
    detours = f", {mistakes} in a row inserted" if config.detours else ""
    methods = ", ".join(config.methods)
    yield f"rounds: {config.rounds} of {methods}, {_passes(config.sft_more)}{detours}"
    yield (
        f"actions: at most {config.inspection.decoding.max_new_tokens} tokens, the expert's "
        f"longest has {known.longest_action}"
    )


def _passes(config: SFTConfig) -> str:
    passes = "1 pass" if config.epochs == 1 else f"{config.epochs} passes"
    return (
        f"{passes} in batches of {config.batch_size}, learning rate "
        f"{config.optimizer.learning_rate:g}"
    )
