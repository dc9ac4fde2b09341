"""Blocked attention over prefix trees equals attention with the dense mask, and needs less."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from fakes import random_policy, rendered, with_budget
from stepagent.inspection import inspect, step_tree
from stepagent.model import tree_attention
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import ROOT, PrefixTree, Row, lay_out
from stepagent.model.tree_attention import BLOCK, TREE_ATTENTION, TreeMask, _tree_attention
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.types import Step, Trajectory


def random_tree(source: np.random.Generator, size: int) -> PrefixTree:
    """A tree in which a token mostly follows the one before, and sometimes branches off."""
    tree = PrefixTree()
    node = tree.add(ROOT, [0])[-1]
    for token in range(1, size):
        parent = node if source.random() < 0.9 else int(source.integers(len(tree)))
        node = tree.add(parent, [token])[-1]
    return tree


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, weights: Tensor
) -> tuple[Tensor, ...]:
    """The output, and the gradients of its weighted sum."""
    output, _ = _tree_attention(torch.nn.Module(), query, key, value, mask)
    return output, *torch.autograd.grad((output * weights).sum(), (query, key, value))


def plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, weights: Tensor
) -> tuple[Tensor, ...]:
    """The same by PyTorch's attention with a dense mask."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(groups, 1) for x in (key, value))
    output = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(1, 2)
    return output, *torch.autograd.grad((output * weights).sum(), (query, key, value))


def inputs(length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries of four heads, keys and values of two, and weights of the output."""
    torch.manual_seed(length)
    shapes = ((1, 4, length, 16), (1, 2, length, 16), (1, 2, length, 8))
    tensors = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return *tensors, torch.randn(1, length, 4, 8).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 40),
    block=st.sampled_from([1, 7, 32]),
    seed=st.integers(0, 2**16),
)
def test_blocks_equal_the_dense_mask_in_values_and_gradients(
    sizes: list[int], window: int | None, block: int, seed: int
) -> None:
    source = np.random.default_rng(seed)
    trees = [random_tree(source, size) for size in sizes]
    row, _ = lay_out(trees, [[0]] * len(trees))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_attention, "BLOCK", block)
        mask = TreeMask.of(row, window)
    own = inputs(len(row.token_ids), torch.float64)
    for a, b in zip(attend(*own[:3], mask, own[3]), plain(*own[:3], row.mask(window), own[3])):  # noqa: B905
        torch.testing.assert_close(a, b)


def test_bfloat16_is_as_exact_as_pytorchs_own_attention() -> None:
    row, _ = lay_out([random_tree(np.random.default_rng(0), 400)], [[0]])
    exact = inputs(400, torch.float32)
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    mask, dense = TreeMask.of(row, None), row.mask()
    truth = plain(*exact[:3], dense, exact[3])

    def errors(found: tuple[Tensor, ...]) -> list[float]:
        return [
            ((a - b.float()).norm() / a.norm()).item() for a, b in zip(truth, found, strict=True)
        ]

    own = errors(attend(*half[:3], mask, half[3]))
    pytorch = errors(plain(*half[:3], dense, half[3]))
    assert max(own) < 0.02
    assert all(a < 2 * b for a, b in zip(own, pytorch, strict=True))


def branching(trunk: int) -> Row:
    """The row of a trunk with a branch of 8 tokens after every 100th token."""
    tree = PrefixTree()
    nodes = tree.add(ROOT, range(trunk))
    for start in range(50, trunk, 100):
        tree.add_path(nodes[start], [trunk + start * 8 + i for i in range(8)])
    return lay_out([tree], [[0]])[0]


def test_masks_grow_with_the_number_of_tokens() -> None:
    sizes, counts = [], []
    for trunk in (2000, 4000, 8000):
        row = branching(trunk)
        sizes.append(len(row.token_ids))
        counts.append(sum(block.hidden.numel() for block in TreeMask.of(row, None).blocks))
        assert counts[-1] <= 20 * BLOCK * sizes[-1]
    slopes = np.polyfit(np.log(sizes), np.log(counts), 1)
    assert slopes[0] < 1.3


def walk(steps: int, words: int) -> Trajectory:
    """A trajectory of equal steps, whose observations have this many words."""
    seen = " ".join(["the red box is open"] * (words // 5))
    return Trajectory(
        id="walk/0",
        task="walk",
        instruction="Go on.",
        steps=tuple(Step(observation=f"{n} {seen}", action="go on") for n in range(steps)),
    )


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.elements = max(
            self.elements,
            *(value.numel() for value in tree_leaves(found) if isinstance(value, Tensor)),
            0,
        )
        return found


def largest(policy: Policy, trajectory: RenderedTrajectory, what: str) -> int:
    """The largest tensor of a training step on the trajectory, or of practice in its states."""
    with Largest() as noted:
        if what == "training":
            tree = step_tree(trajectory).tree
            (pack,) = policy.layers.packs([tree])
            policy.path_logprobs(pack)[0].sum().backward()
        else:
            inspect(policy, [trajectory], Decoding(max_new_tokens=2), seed=0)
    return noted.elements


@pytest.mark.parametrize("what", ["training", "practice"])
def test_the_largest_tensor_grows_with_the_number_of_tokens_and_not_with_its_square(
    what: str,
) -> None:
    policy = with_budget(random_policy(hidden_size=32), 512)
    # A trunk of equal steps, far longer than the token budget.
    few, many = (rendered(policy, [walk(4, words)])[0] for words in (300, 2400))
    growth = many.num_tokens / few.num_tokens
    assert growth > 7
    found = [largest(policy, trajectory, what) for trajectory in (few, many)]
    assert found[1] / found[0] < 1.3 * growth
    assert found[1] < many.num_tokens**2 / 4


def test_a_trunk_attends_to_nothing_behind_it_and_a_branch_to_its_own_prefix_only() -> None:
    row = branching(1000)
    pairs = sum(
        (block.end - block.start) * len(torch.arange(len(row.token_ids))[block.keys])
        for block in TreeMask.of(row, None).blocks
    )
    needed = int(row.mask().sum())
    assert pairs < 1.4 * needed
    assert pairs < 0.65 * len(row.token_ids) ** 2


def test_a_plain_call_of_the_model_is_causal_as_before() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(20)[None]
    before = model(input_ids=ids).logits
    model.set_attn_implementation(TREE_ATTENTION)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
