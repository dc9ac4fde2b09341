"""Attention within a row of prefix trees on a CPU: exact, and without a mask of length squared.

Queries are taken in blocks of consecutive tokens. A block attends to the ancestors that all of its
tokens have in common, without a mask, and to a few more keys with a small one; all other keys are
left out. So a trunk costs half of what a dense mask does, a branch only its own prefix, and memory
grows with the number of tokens. Scores are computed again in the backward pass instead of being
kept (Dao et al. 2022, arXiv 2205.14135, sec. 3.1). docs/performance.md compares this with PyTorch's
kernel.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stepagent.model.prefix_tree import Row

TREE_ATTENTION = "prefix_tree"
"""Name of this kernel among transformers' attention implementations."""

BLOCK = 128
"""Queries in a block: the scores of one then fit into a core's cache."""


@dataclass(frozen=True)
class _Block:
    """The queries [start, end) of a row, and the keys that any of them attends to."""

    start: int
    end: int
    keys: slice | Tensor
    """Their places in the row: first those that all queries attend to."""
    hidden: Tensor
    """(queries, last keys) bool, true where a query does not attend to one of the last keys."""


class TreeMask(Tensor):
    """The mask of a row, as blocks.

    A tensor with four dimensions and no element, since models pass no other object on to their
    layers as it is.
    """

    blocks: list[_Block]

    @classmethod
    def of(cls, row: Row, window: int | None) -> "TreeMask":
        """The mask of `Row.mask`, in blocks."""
        mask = torch.empty(1, 1, 0, 0).as_subclass(cls)
        mask.blocks = [
            _block(row, start, min(start + BLOCK, len(row.token_ids)), window)
            for start in range(0, len(row.token_ids), BLOCK)
        ]
        return mask


def _block(row: Row, start: int, end: int, window: int | None) -> _Block:
    key, until = torch.arange(end), row.subtree_end[:end]
    depth = row.positions[:end]
    by_any, by_all = until > start, (key <= start) & (until >= end)
    if window is not None:
        own = depth[start:]
        by_any &= depth > own.min() - window
        by_all &= depth > own.max() - window
    shared, partly = by_all.nonzero()[:, 0], (by_any & ~by_all).nonzero()[:, 0]
    query = torch.arange(start, end)[:, None]
    seen = (partly <= query) & (query < until[partly])
    if window is not None:
        seen &= depth[start:, None] - depth[partly] < window
    keys = torch.cat([shared, partly])
    is_range = bool((keys.diff() == 1).all())
    return _Block(start, end, slice(int(keys[0]), end) if is_range else keys, ~seen)


class _BlockedAttention(torch.autograd.Function):
    """Attention of one row, block by block; the backward pass computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[_Block]
    ) -> Tensor:
        """(key heads, groups, tokens, width) of `query`, already scaled; keys without groups."""
        ctx.save_for_backward(query, key, value)
        ctx.blocks = blocks
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        for block in blocks:
            weights = _weights(query, key, block)
            found = weights @ value[:, block.keys]
            output[:, :, block.start : block.end] = _by_group(found, query.shape[1])
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Sums over blocks in at least float32."""
        query, key, value = ctx.saved_tensors
        (grad,) = grads
        for_query = torch.empty_like(query)
        exact = torch.promote_types(key.dtype, torch.float32)
        for_key, for_value = (x.new_zeros(x.shape, dtype=exact) for x in (key, value))
        for block in ctx.blocks:
            own, own_grad = _stacked(query, block), _stacked(grad, block)
            weights = _weights(query, key, block)
            for_value[:, block.keys] += weights.mT @ own_grad
            for_weights = own_grad @ value[:, block.keys].mT
            for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
            found = for_scores @ key[:, block.keys]
            for_query[:, :, block.start : block.end] = _by_group(found, query.shape[1])
            for_key[:, block.keys] += for_scores.mT @ own
        return for_query, for_key.to(key.dtype), for_value.to(value.dtype), None


def _weights(query: Tensor, key: Tensor, block: _Block) -> Tensor:
    """(key heads, groups * queries, keys) attention weights of a block."""
    scores = _stacked(query, block) @ key[:, block.keys].mT
    if num_last := block.hidden.shape[1]:
        last = _by_group(scores, query.shape[1])[..., -num_last:]
        last.masked_fill_(block.hidden, float("-inf"))
    return torch.softmax(scores, -1)


def _stacked(query: Tensor, block: _Block) -> Tensor:
    """(key heads, groups * queries, width): the queries of a block that share keys."""
    return query[:, :, block.start : block.end].flatten(1, 2)


def _by_group(stacked: Tensor, groups: int) -> Tensor:
    """(key heads, groups, queries, ...) of what `_stacked` stacked."""
    return stacked.view(stacked.shape[0], groups, -1, stacked.shape[-1])


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' layers call it, (1, heads, tokens, width); SDPA for other masks.

    Returns (1, tokens, heads, width).
    """
    if not isinstance(attention_mask, TreeMask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    scaled = query[0] * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    grouped = scaled.view(key.shape[1], -1, *scaled.shape[1:])
    output = _BlockedAttention.apply(grouped, key[0], value[0], attention_mask.blocks)  # type: ignore[no-untyped-call]
    return output.flatten(0, 1).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(TREE_ATTENTION, _tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
