"""LoRA (Hu et al. 2021, arXiv 2106.09685) by PEFT: several trained versions of one model in memory.

Policy and discriminator are adapters on the same frozen base. One adapter is active at a time.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which low-rank updates are trained instead of the whole model."""

    rank: int = 0
    """Rank of the update of each matrix; 0 trains the whole model."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    target_modules: str = "all-linear"
    """Which layers get one: PEFT's name for all linear layers, or a regular expression."""

    def __post_init__(self) -> None:
        """Raises `LoRAError` for a rank that cannot be."""
        if self.rank < 0:
            raise LoRAError(f"--lora.rank must be at least 0, not {self.rank}")


class LoRAError(ValueError):
    """Adapters cannot be made as asked; the message is one line."""


@dataclass(frozen=True)
class Adapter:
    """One named adapter of a model."""

    name: str

    @classmethod
    def add(cls, model: PreTrainedModel, name: str, config: LoRAConfig, *, seed: int) -> "Adapter":
        """A new adapter, which changes nothing yet; the model's own weights are frozen."""
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=config.target_modules,
            task_type="CAUSAL_LM",
        )
        model.requires_grad_(False)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model.add_adapter(settings, name)
        except ValueError as error:
            raise LoRAError(f"LoRA: {str(error).splitlines()[0]}") from None
        adapter = cls(name)
        adapter._keep_float32(model)
        return adapter

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Adapter":
        """The adapter that a model was loaded with, ready to be trained on."""
        (name,) = model.peft_config  # a folder holds one
        model.set_adapter(name)
        adapter = cls(name)
        adapter._keep_float32(model)
        return adapter

    def _keep_float32(self, model: PreTrainedModel) -> None:
        """Small updates get lost in bfloat16, in which the frozen weights may be."""
        for parameter in self.parameters(model).values():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))

    def activate(self, model: PreTrainedModel) -> None:
        """From now on forward passes and gradients go through this adapter."""
        if model.active_adapters() != [self.name]:
            model.set_adapter(self.name)

    def parameters(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """The adapter's weights by names that are the same for every adapter of the model."""
        self.activate(model)
        part = f".{self.name}."
        found = ((n.replace(part, "."), p) for n, p in model.named_parameters() if part in n)
        return dict(found)

    def copy(self, model: PreTrainedModel, name: str) -> "Adapter":
        """Another adapter of the same shape and weights."""
        own = self.parameters(model)
        with warnings.catch_warnings():
            # PEFT asks whether several adapters are meant: they are.
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            model.add_adapter(model.peft_config[self.name], name)
        copied = Adapter(name)
        copied._keep_float32(model)
        with torch.no_grad():
            for key, parameter in copied.parameters(model).items():
                parameter.copy_(own[key])
        return copied

    def restore(self, model: PreTrainedModel, folder: Path) -> None:
        """Takes over the weights of an adapter folder."""
        set_peft_model_state_dict(model, load_peft_weights(str(folder), "cpu"), self.name)

    def merged(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The weights of the model with the adapter added to them, by the plain model's names."""
        self.activate(model)
        weights = {
            name.replace(".base_layer.", "."): value
            for name, value in model.state_dict().items()
            if ".lora_" not in name
        }
        for name, module in model.named_modules():
            if isinstance(module, LoraLinear):
                weight = f"{name}.weight"
                weights[weight] = weights[weight] + module.get_delta_weight(self.name)
        return weights
