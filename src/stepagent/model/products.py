"""Matrix products in float32 on a CPU, by the faster of the two libraries that PyTorch brings.

PyTorch multiplies float32 matrices with MKL, which on many processors does not use their widest
units. oneDNN does; PyTorch takes it for other precisions. Both round alike: each sum is one of
float32 products in some order. docs/performance.md compares them.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stepagent.processes import ranks

MIN_GAIN = 1.5
"""oneDNN is used if it is at least this many times as fast; noise must not decide between them."""
MIN_MULTIPLICATIONS = 10**6
"""Products of fewer multiplications are over before oneDNN has begun."""


class Linear(nn.Linear):
    """A linear layer that multiplies with oneDNN in float32 on a CPU, forwards and backwards."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., out) from (..., in)."""
        weight = self.weight
        if not _takes(input, weight):
            return F.linear(input, weight, self.bias)
        if torch.is_grad_enabled():
            found: Tensor = _Product.apply(input, weight)  # type: ignore[no-untyped-call]
        else:
            found = _product(input, weight)
        return found if self.bias is None else found + self.bias


def use_faster_products(model: nn.Module) -> None:
    """Makes the linear layers of a model use oneDNN, if it is the faster one on this machine."""
    if uses_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


def uses_onednn() -> bool:
    """Whether oneDNN is the faster one on this machine."""
    return onednn_gain() >= MIN_GAIN


@cache
def onednn_gain() -> float:
    """How many times as fast as MKL's a float32 product of oneDNN is; 0 without oneDNN.

    Takes a fraction of a second.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0.0
    a, b = torch.ones(256, 1024), torch.ones(1024, 1024)
    taken = fastest({"mkl": lambda: F.linear(a, b), "onednn": lambda: _product(a, b)})
    return ranks.from_first(taken["mkl"] / taken["onednn"])


def fastest(products: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each; the fastest of several calls counts, in turns."""
    taken = dict.fromkeys(products, math.inf)
    for _ in range(10):
        for name, multiply in products.items():
            start = time.perf_counter()
            multiply()
            taken[name] = min(taken[name], time.perf_counter() - start)
    return taken


def _takes(input: Tensor, weight: Tensor) -> bool:
    return (
        input.dtype == weight.dtype == torch.float32
        and input.is_cpu
        and input.numel() * len(weight) >= MIN_MULTIPLICATIONS
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right.T` for (..., n) and (m, n)."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return found


class _Product(torch.autograd.Function):
    """`input @ weight.T` and its gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        """(..., out) from (..., in) and (out, in)."""
        # A frozen weight needs no input for its gradient: with LoRA most of them are kept nowhere.
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight)
        return _product(input, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Only for what needs a gradient."""
        input, weight = ctx.saved_tensors
        (grad,) = grads
        for_input = for_weight = None
        if ctx.needs_input_grad[0]:
            for_input = _product(grad, weight.T)
        if ctx.needs_input_grad[1]:
            for_weight = _product(grad.flatten(0, -2).T, input.flatten(0, -2).T)
        return for_input, for_weight
