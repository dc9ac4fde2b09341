"""Lean norms, MLPs and LoRA compute what those of transformers and PEFT do, and keep less."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PEFTLinear
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from stepagent.model.lean_layers import GatedMLP, LoRALinear, RMSNorm, use_lean_layers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def model_of(family: str, **settings: Any) -> Any:
    """A model of random weights, norms included, as its family computes it."""
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **settings))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found.eval()


def first(model: nn.Module, name: str) -> Any:
    """The first layer whose class is so named, in part."""
    return next(m for m in model.modules() if name in type(m).__name__)


def with_gradients(layer: nn.Module, input: Tensor) -> list[Tensor]:
    """The output, and the gradients of a weighted sum of it for input and weights."""
    input = input.clone().requires_grad_()
    output = layer(input)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad((output * weights).sum(), [input, *trained])]


@contextmanager
def kept(layer: nn.Module) -> Iterator[Callable[[], list[tuple[tuple[int, ...], torch.dtype]]]]:
    """What is kept for the backward pass, each tensor once, weights left out."""
    seen: dict[int, Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sorted((tuple(t.shape), t.dtype) for t in seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "granite"])
def test_values_and_gradients_of_a_model_are_equal_to_the_last_bit(
    family: str, dtype: torch.dtype
) -> None:
    own = model_of(family)
    lean = deepcopy(own)
    use_lean_layers(lean)
    assert {RMSNorm, GatedMLP} <= {type(module) for module in lean.modules()}
    ids = torch.randint(SIZES["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(1))
    found = []
    for model in (own.to(dtype), lean.to(dtype)):
        loss = model(input_ids=ids, labels=ids).loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert len(found[0]) > 10 and all(gradient.abs().max() > 0 for gradient in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Norm", "MLP"])
def test_the_same_holds_for_each_layer_with_frozen_weights(name: str, dtype: torch.dtype) -> None:
    own = model_of("llama").to(dtype).requires_grad_(False)
    lean = deepcopy(own)
    use_lean_layers(lean)
    torch.manual_seed(1)
    input = 3 * torch.randn(2, 5, 32, dtype=dtype)
    found, expected = (with_gradients(first(model, name), input) for model in (lean, own))
    assert len(found) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_in_float64_are_those_of_differences() -> None:
    lean = model_of("llama").double()
    use_lean_layers(lean)
    input = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    for name in ("RMSNorm", "GatedMLP"):
        assert torch.autograd.gradcheck(first(lean, name), input)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gemma", {"GemmaRMSNorm", "GemmaMLP"}),  # one plus weight; GELU
        ("olmo2", {"Olmo2RMSNorm", "GatedMLP"}),  # rounds after the product with the weights
        ("phi3", {"RMSNorm", "Phi3MLP"}),  # gate and up in one
        ("helium", {"HeliumRMSNorm", "GatedMLP"}),
        ("gpt2", {"GPT2MLP"}),
        ("qwen2_moe", {"RMSNorm", "GatedMLP"}),
    ],
)
def test_layers_that_compute_something_else_stay(family: str, kinds: set[str]) -> None:
    model = model_of(family)
    ids = torch.arange(20)[None]
    expected = model(input_ids=ids).logits
    use_lean_layers(model)
    names = {type(module).__name__ for module in model.modules()}
    assert kinds <= names
    assert {n for n in names if n.endswith(("RMSNorm", "MLP"))} == kinds
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_an_mlp_with_a_step_of_its_own_stays() -> None:
    class Scaled(nn.Module):
        """Has the same parts, and computes half."""

        def __init__(self, mlp: Any) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = mlp.gate_proj, mlp.up_proj
            self.down_proj, self.act_fn = mlp.down_proj, mlp.act_fn

        def forward(self, x: Tensor) -> Tensor:
            gated = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
            return cast(Tensor, self.down_proj(gated)) / 2

    mlp = Scaled(first(model_of("llama"), "MLP"))
    use_lean_layers(mlp)
    assert type(mlp) is Scaled


def test_a_norm_keeps_its_input_and_a_number_for_each_token() -> None:
    model = model_of("llama").bfloat16()
    use_lean_layers(model)
    norm = first(model, "RMSNorm")
    with kept(norm) as found:
        norm(torch.randn(1, 7, 32, dtype=torch.bfloat16, requires_grad=True))
    assert found() == [((1, 7, 1), torch.float32), ((1, 7, 32), torch.bfloat16)]


def test_a_gated_mlp_keeps_no_activations_but_those_of_trained_products() -> None:
    model = model_of("llama").requires_grad_(False)
    use_lean_layers(model)
    mlp = first(model, "GatedMLP")
    with kept(mlp) as found:
        mlp(torch.randn(1, 7, 32, requires_grad=True))
    assert found() == [((1, 7, 48), torch.float32)] * 2  # gate and up


# LoRA


def adapted(**settings: Any) -> tuple[PEFTLinear, LoRALinear]:
    """A linear layer with LoRA of random weights, as PEFT has it and as we do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10, bias=False))
    config = LoraConfig(**{"r": 4, "target_modules": ["0"], **settings})
    peft = get_peft_model(cast(Any, model), config).eval()
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    lean = deepcopy(peft)
    use_lean_layers(lean)
    theirs, ours = first(peft, "Linear"), first(lean, "LoRALinear")
    assert type(theirs) is PEFTLinear
    return theirs, ours


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 6), min_size=0, max_size=2), is_half=st.booleans())
def test_lora_computes_what_it_does_in_peft(shape: list[int], is_half: bool) -> None:
    theirs, ours = adapted()
    if is_half:
        theirs, ours = theirs.bfloat16(), ours.bfloat16()
    input = torch.randn(*shape, 20, dtype=torch.bfloat16 if is_half else torch.float32)
    tolerance = 3e-2 if is_half else 1e-5
    for mine, other in zip(with_gradients(ours, input), with_gradients(theirs, input), strict=True):
        assert mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * 10)


def test_lora_keeps_its_input_and_what_is_between_its_matrices() -> None:
    _, ours = adapted()
    with kept(ours) as found:
        ours(torch.randn(7, 20, requires_grad=True))
    assert found() == [((7, 4), torch.float32), ((7, 20), torch.float32)]


def disable(layer: PEFTLinear) -> None:
    """No adapter is active."""
    layer.enable_adapters(False)


def merge(layer: PEFTLinear) -> None:
    """The adapter is in the weights."""
    layer.merge()


def train_with_dropout(layer: PEFTLinear) -> None:
    """Dropout is on."""
    layer.train()
    torch.manual_seed(3)


def keep_adapter_exact(layer: PEFTLinear) -> None:
    """The adapter has float32 weights and its base has not."""
    layer.base_layer.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, disable),
        ({}, merge),
        ({"lora_dropout": 0.5}, train_with_dropout),
        ({}, keep_adapter_exact),
        ({"use_dora": True}, None),
        ({"lora_bias": True}, None),
        ({"use_rslora": True}, None),
    ],
)
def test_what_is_not_plain_lora_is_left_to_peft(
    settings: dict[str, Any], change: Callable[[PEFTLinear], None] | None
) -> None:
    outputs = []
    for layer in adapted(**settings):
        torch.manual_seed(5)
        input = torch.randn(3, 20)
        if change:
            change(layer)
        outputs.append(layer(input.to(cast(nn.Linear, layer.get_base_layer()).weight.dtype)))
    found, expected = outputs[1], outputs[0]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_two_active_adapters_both_count() -> None:
    for one, other in pairwise(adapted()):
        for layer in (one, other):
            layer.update_layer("second", 4, 8, config=LoraConfig(init_lora_weights=False))
            layer.set_adapter(["default", "second"])
        other.load_state_dict(one.state_dict())
        input = torch.randn(3, 20)
        assert torch.equal(other(input), one(input))
