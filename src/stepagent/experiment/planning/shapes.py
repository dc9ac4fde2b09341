"""The shape of a language model: how many weights lie where, and slices to measure on."""

from copy import deepcopy
from dataclasses import dataclass
from math import log
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from stepagent.model.weights import WeightsError, open_config, place

SIZES = {
    0.135: ("SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, True),
    0.49: ("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 151936, True),
    1.54: ("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 151936, True),
    3.09: ("Qwen2.5-3B", 36, 2048, 11008, 16, 2, 151936, True),
    8.03: ("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128256, False),
    14.8: ("Qwen2.5-14B", 48, 5120, 13824, 40, 8, 152064, False),
    32.8: ("Qwen2.5-32B", 64, 5120, 27648, 40, 8, 152064, False),
    70.6: ("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128256, False),
}
"""Billions of parameters of known models, from their config.json: name, layers, width, width of the
MLP, heads, heads of keys and values, vocabulary, whether embeddings and output head are one."""


class PlanError(ValueError):
    """A plan cannot be made; the message is one line."""


@dataclass(frozen=True)
class Shape:
    """A decoder of equal layers, and all weights that are in none of them."""

    name: str
    config: PreTrainedConfig
    in_layer: int
    """Weights in one layer."""
    elsewhere: int
    """Weights in embeddings, last norm and output head."""
    sides: int
    """Inputs and outputs of a layer's linear modules, all together: weights of LoRA per rank."""

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.config.num_hidden_layers)

    @property
    def weights(self) -> int:
        """All weights."""
        return self.layers * self.in_layer + self.elsewhere

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def kept(self) -> int:
        """Numbers that a token leaves in the cache: keys and values of all layers."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or self.width // config.num_attention_heads
        return 2 * self.layers * int(heads) * int(width)

    def trained(self, rank: int) -> int:
        """Weights that are trained: those of LoRA, or with rank 0 all."""
        return (rank * self.layers * self.sides) if rank else self.weights

    def slice(self, layers: int) -> PreTrainedModel:
        """A model of this shape with random weights and only the first layers."""
        config = _cut(self.config, layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        return cast(PreTrainedModel, model.eval())


def shape_of(config: PreTrainedConfig, name: str) -> Shape:
    """The shape of a model by its config; raises `PlanError` if its layers are not equal."""

    def cut(layers: int) -> nn.Module:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(_cut(config, layers), trust_remote_code=False)
        return cast(nn.Module, model)

    one, two, every = (_weights(cut(n)) for n in (1, 2, config.num_hidden_layers))
    first, more = (
        sum(m.in_features + m.out_features for m in cut(n).modules() if isinstance(m, nn.Linear))
        for n in (1, 2)
    )
    shape = Shape(name, config, two - one, 2 * one - two, more - first)
    if every != shape.weights:
        raise PlanError(f"{name}: expected a model whose layers are of one size")
    return shape


def shape_of_model(source: str) -> Shape:
    """The shape of a model by its folder or its id on the hub; reads its config.json only."""
    try:
        return shape_of(open_config(source), place(source))
    except WeightsError as error:
        raise PlanError(str(error)) from None


def shape_of_size(size: str) -> Shape:
    """The shape of the known model whose size is nearest, such as `8B` or `500M`."""
    unit = {"B": 1.0, "M": 1e-3}.get(size[-1:].upper())
    try:
        wanted = float(size[:-1]) * (unit or 0.0)
    except ValueError:
        wanted = 0.0
    if not 0 < wanted < 1e4:
        raise PlanError(f"--model-size {size}: expected a number with B or M, such as 8B or 500M")
    nearest = min(SIZES, key=lambda known: abs(log(known / wanted)))
    name, layers, width, mlp, heads, kept, vocabulary, tied = SIZES[nearest]
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=kept,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=131072,
    )
    return shape_of(config, f"{name} ({nearest:g}B)")


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _cut(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config with fewer layers."""
    own = deepcopy(config)
    own.num_hidden_layers = layers
    if getattr(own, "layer_types", None):
        own.layer_types = own.layer_types[:layers]
    return own
