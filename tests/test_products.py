"""Products by oneDNN equal PyTorch's own, in values and gradients, and are used where faster."""

from collections.abc import Callable
from copy import deepcopy
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from stepagent.model import products
from stepagent.model.products import Linear, fastest, onednn_gain, use_faster_products

if not onednn_gain():
    pytest.skip("this PyTorch has no oneDNN", allow_module_level=True)


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product is too small."""
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "onednn_gain", lambda: 2.0)


def with_gradients(layer: nn.Module, input: Tensor, weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of its weighted sum for the input and for what is trained."""
    output: Tensor = layer(input)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad((output * weights).sum(), [input, *trained])]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=2),
    rows=st.integers(1, 70),
    sizes=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    has_bias=st.booleans(),
    is_frozen=st.booleans(),
    is_transposed=st.booleans(),
)
def test_values_and_gradients_are_those_of_pytorch(
    shape: list[int],
    rows: int,
    sizes: tuple[int, int],
    has_bias: bool,
    is_frozen: bool,
    is_transposed: bool,
) -> None:
    torch.manual_seed(rows)
    plain = nn.Linear(*sizes, bias=has_bias)
    plain.weight.requires_grad_(not is_frozen)
    ours = deepcopy(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "MIN_MULTIPLICATIONS", 0)
        patch.setattr(products, "onednn_gain", lambda: 2.0)
        use_faster_products(ours)
        assert type(ours) is Linear
        if is_transposed:
            input = torch.randn(*shape, sizes[0], rows).mT
        else:
            input = torch.randn(*shape, rows, sizes[0])
        weights = torch.randn(*input.shape[:-1], sizes[1])
        input.requires_grad_()
        found = with_gradients(ours, input, weights)
        with torch.no_grad():
            torch.testing.assert_close(ours(input), found[0], rtol=1e-6, atol=1e-5)
    # Sums in another order, so as exact as float32 is and not equal to the last bit.
    expected = with_gradients(plain, input, weights)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-4)
    exact = with_gradients(plain.double(), input.detach().double().requires_grad_(), weights)
    for mine, theirs, wanted in zip(found, expected, exact, strict=True):
        error = (mine - wanted).abs().max()
        assert error <= 3 * (theirs - wanted).abs().max() + 1e-5


def test_other_precisions_and_small_products_are_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiplied = []
    product = products._product

    def counted(*both: Tensor) -> Tensor:
        multiplied.append(both)
        return product(*both)

    monkeypatch.setattr(products, "_product", counted)
    layer: Any = nn.Linear(1000, 100)
    layer.__class__ = Linear
    for dtype in (torch.float64, torch.bfloat16):
        layer.to(dtype)(torch.ones(10, 1000, dtype=dtype))
    layer.float()(torch.ones(9, 1000))
    assert not multiplied
    layer(torch.ones(10, 1000))
    assert len(multiplied) == 1


def test_a_frozen_weight_keeps_no_input(every_size: None) -> None:
    kept = list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    layer = nn.Linear(8, 8, bias=False).requires_grad_(False)
    use_faster_products(layer)
    input = torch.ones(4, 8, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(input).sum().backward()
    assert [tuple(tensor.shape) for tensor in kept] == [(8, 8)]


def test_a_gradient_of_the_gradient_is_refused(every_size: None) -> None:
    layer = nn.Linear(8, 8)
    use_faster_products(layer)
    input = torch.ones(4, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(("gain", "kind"), [(1.4, nn.Linear), (1.6, Linear)])
def test_the_faster_library_is_used(
    gain: float, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Special(nn.Linear):
        """A layer that may compute something else."""

    monkeypatch.setattr(products, "onednn_gain", lambda: gain)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Special(2, 2)))
    use_faster_products(model)
    assert type(model[0]) is kind
    assert type(model[1][0]) is Special  # type: ignore[index]


def test_the_fastest_of_several_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(products.time, "perf_counter", lambda: clock[0])

    def takes(*seconds: float) -> Callable[[], None]:
        left = cycle(seconds)

        def product() -> None:
            clock[0] += next(left)

        return product

    taken = fastest({"even": takes(4.0), "mixed": takes(9.0, 3.0, 5.0)})
    assert taken == {"even": 4.0, "mixed": 3.0}
