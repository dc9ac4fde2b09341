"""Norms, gated MLPs and LoRA that keep less for the backward pass and copy less.

Norms and MLPs compute what those of transformers compute, values and gradients, to the last bit;
LoRA what PEFT's does, up to rounding. Theirs keep a float32 copy of each norm's input and the
activations of each gate, which the backward pass here computes again; and they need three passes
over the output of a layer to add its adapter's, which is one product here. What is not held matters
twice: on a CPU, tensors freed between others that are kept leave gaps.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as PEFTLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stepagent.model.products import Linear


class RMSNorm(nn.Module):
    """Root mean square layer normalization (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) from (..., width), each divided by its root mean square."""
        # Twice, for its two gradients are added one by one to others, as autograd would.
        found = _Norm.apply(hidden, hidden, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return cast(Tensor, found)


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) from (..., width)."""
        gated = _Gated.apply(self.gate_proj(hidden), self.up_proj(hidden))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.down_proj(gated))


class LoRALinear(PEFTLinear):
    """A linear layer with LoRA: adds the adapter's output in place."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., out) from (..., in); with adapters that do anything else, what PEFT computes."""
        name = self._plain_adapter(x)
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        # Two dimensions, because in three PyTorch gives a view, and adding to one copies it.
        tokens = x.reshape(-1, x.shape[-1])
        found: Tensor = self.base_layer(tokens)
        up = cast(nn.Linear, self.lora_B[name])
        found.addmm_(self.lora_A[name](tokens), up.weight.T, alpha=self.scaling[name])
        return found.view(*x.shape[:-1], -1)

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The only active adapter, if its output is `scaling * B(A(x))` in the precision of x."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        (name,) = active
        base, up = self.base_layer, cast(nn.Linear, self.lora_B[name])
        is_plain = (
            type(base) in (nn.Linear, Linear)
            and name not in self.lora_variant
            and up.bias is None
            and not (self.training and isinstance(self.lora_dropout[name], nn.Dropout))
            and x.dtype == up.weight.dtype == base.weight.dtype
        )
        return name if is_plain else None


@torch.no_grad()
def use_lean_layers(model: nn.Module) -> None:
    """Replaces norms, gated MLPs and LoRA by the ones here, where the results stay the same.

    Families of models have the same layers under many names, and others under similar ones, so
    names decide nothing: each is compared with its replacement on samples.
    """
    for module in model.modules():
        if type(module) is PEFTLinear:
            module.__class__ = LoRALinear
        elif isinstance(module, RMSNorm | GatedMLP):
            continue
        elif hasattr(module, "variance_epsilon") and _is_of_one_input(module):
            # In bfloat16 some families round before they multiply with the weights, others after.
            for_norm = _sample(cast(Tensor, module.weight))
            _replace_if_equal(module, RMSNorm, [for_norm.float(), for_norm.bfloat16()])
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            weight = getattr(module.gate_proj, "weight", None)
            if weight is not None:
                _replace_if_equal(module, GatedMLP, [_sample(weight)])


def _is_of_one_input(module: nn.Module) -> bool:
    """Whether it has a weight of its own, and takes nothing but hidden states."""
    has_weight = isinstance(module._parameters.get("weight"), nn.Parameter)
    return has_weight and len(signature(module.forward).parameters) == 1


def _sample(weight: Tensor) -> Tensor:
    """(1, 1, width) an input for a layer with this weight (..., width)."""
    width = weight.shape[-1]
    return torch.linspace(-2, 3, width, dtype=weight.dtype, device=weight.device)[None, None]


def _replace_if_equal(module: nn.Module, kind: type[nn.Module], samples: Sequence[Tensor]) -> None:
    """Changes the class of a module if it computes the same on the samples."""
    own, expected = type(module), [module(sample) for sample in samples]
    module.__class__ = kind
    for sample, before in zip(samples, expected, strict=True):
        found = module(sample)
        if found.dtype != before.dtype or not torch.equal(found, before):
            module.__class__ = own
            return


class _Norm(torch.autograd.Function):
    """`weight * x / rms(x)` and its gradients, with the roundings of the single operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """(..., width) in the precision of x; computes in at least float32."""
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, scale, weight)
        return weight * (full * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """The gradient through the product with the scale, and the one through the scale."""
        x, scale, weight = ctx.saved_tensors
        (grad,) = grads
        full = x.to(scale.dtype)
        for_weight = None
        if ctx.needs_input_grad[2]:
            normed = (full * scale).to(x.dtype)
            for_weight = (grad * normed).sum(tuple(range(x.dim() - 1))).to(weight.dtype)
        grad = (grad * weight).to(x.dtype).to(scale.dtype)
        for_square = (grad * full).sum(-1, keepdim=True).mul_(-0.5).mul_(scale.pow(3))
        through_scale = (for_square / x.shape[-1]) * (full * 2)
        through_product = grad * scale
        if x.dtype == scale.dtype:
            return through_product, through_scale, for_weight, None
        return through_product.add_(through_scale).to(x.dtype), None, for_weight, None


class _Gated(torch.autograd.Function):
    """`silu(gate) * up` and its gradients."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """All of the same shape."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """The activations are computed again."""
        gate, up = ctx.saved_tensors
        (grad,) = grads
        for_gate: Tensor = torch.ops.aten.silu_backward(grad * up, gate)
        return for_gate, F.silu(gate).mul_(grad)
