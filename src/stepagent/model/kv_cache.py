"""Keys and values of rows of tokens, kept between forward passes, and attention to them.

A row is a sequence or a prefix tree in preorder. Tokens are forwarded as one flat list, whichever
rows they belong to, so that only attention deals with rows. A row is extended at its end; branches
leave rows at any token and have their own few keys and values (`branches.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from stepagent.model.forward import Layers

QUERY_BLOCK = 128
"""New tokens of a row that attend together: fewer make small products, more see masked keys."""

KEPT_BUDGETS = 32
"""Most tokens in a cache of trees, in token budgets, so that it shrinks when memory runs out."""
KEPT_BYTES = 2**30
"""Most memory of such a cache on a CPU; on a GPU it may take a quarter of what is free."""
NEVER = 2**31
"""End of the descendants of a token that all later ones of its row descend from."""


@dataclass
class Kept:
    """Keys and values of one layer."""

    keys: Tensor
    """(rows, heads, width, slots): in half precision, products with transposed keys are slow."""
    values: Tensor
    """(rows, heads, slots, width)"""

    def reserve(self, slots: int) -> None:
        """Makes room for this many slots in each row."""
        if (more := slots - self.values.shape[2]) > 0:
            self.keys = nn.functional.pad(self.keys, (0, more))
            self.values = nn.functional.pad(self.values, (0, 0, 0, more))


def empty_like(key: Tensor, value: Tensor, rows: int, slots: int) -> Kept:
    """Room for keys and values like these, (heads, tokens, width).

    They are zero because attention multiplies masked values by a weight of zero.
    """
    return Kept(
        value.new_zeros(rows, key.shape[0], key.shape[-1], slots),
        value.new_zeros(rows, value.shape[0], slots, value.shape[-1]),
    )


def room_for(layers: Layers) -> int:
    """How many tokens of trees may be in a cache."""
    config, device = layers.config, layers.model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or layers.width // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * layers.dtype.itemsize
    memory: int = torch.cuda.mem_get_info()[0] // 4 if device.type == "cuda" else KEPT_BYTES
    return min(KEPT_BUDGETS * layers.token_budget, int(memory // size))


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Tokens to append to a row, each tensor (new,)."""

    row: int
    token_ids: Tensor
    positions: Tensor
    """Depth of each token in its tree."""
    ends: Tensor
    """Slot after each token's last descendant, as in `prefix_tree.Row`."""


class TreeCache:
    """Keys and values of rows; each is empty at first and grows as it is extended."""

    def __init__(self, layers: Layers, num_rows: int) -> None:
        """Nothing is kept yet."""
        self.layers = layers
        self.lengths = [0] * num_rows
        """Number of tokens in each row; reduce it to overwrite a row's last tokens."""
        device = layers.model.device
        self.positions = torch.zeros(num_rows, 0, dtype=torch.long, device=device)
        """(rows, slots)"""
        self.ends = torch.zeros(num_rows, 0, dtype=torch.long, device=device)
        """(rows, slots)"""
        self.kept: dict[nn.Module, Kept] = {}
        """By the module that attends."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drops all rows that are not listed."""
        chosen = list(rows)
        self.lengths = [self.lengths[row] for row in chosen]
        self.positions, self.ends = self.positions[chosen], self.ends[chosen]
        for kept in self.kept.values():
            kept.keys, kept.values = kept.keys[chosen], kept.values[chosen]

    def extend(self, added: Sequence[NewTokens]) -> Tensor:
        """Appends tokens to rows; returns the hidden states (tokens, width) of all of them.

        Forwards at most the token budget at once, so masks grow with the length of a row and not
        with its square.
        """
        device = self.layers.model.device
        starts = [self.lengths[new.row] for new in added]
        for new, start in zip(added, starts, strict=True):
            self.lengths[new.row] = stop = start + len(new.token_ids)
            self.reserve(stop)
            self.positions[new.row, start:stop] = new.positions
            self.ends[new.row, start:stop] = new.ends
        token_ids = torch.cat([new.token_ids for new in added]).to(device)
        positions = torch.cat([new.positions for new in added]).to(device)
        offsets = list(accumulate((len(new.token_ids) for new in added), initial=0))
        hidden, budget = [], self.layers.token_budget
        for first in range(0, len(token_ids), budget):
            last = min(first + budget, len(token_ids))
            pieces = [
                _Piece(new.row, max(first, begin) - begin + start, min(last, end) - begin + start)
                for new, start, begin, end in zip(added, starts, offsets, offsets[1:], strict=False)
                if begin < last and first < end
            ]
            attention = _Extension(self, pieces)
            hidden.append(
                self.layers.forward_with(attention, token_ids[first:last], positions[first:last])
            )
        return torch.cat(hidden)

    def reserve(self, slots: int) -> None:
        """Makes room for rows of this length; at least doubles it, so growing copies seldom."""
        missing = slots - self.positions.shape[1]
        if missing > 0:
            more = (0, max(missing, self.positions.shape[1]))
            self.positions = nn.functional.pad(self.positions, more)
            self.ends = nn.functional.pad(self.ends, more)
            for kept in self.kept.values():
                kept.reserve(self.positions.shape[1])


@dataclass(frozen=True)
class _Piece:
    """New tokens in slots `start` to `stop` of a row."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Block:
    """Neighbouring new tokens of a row that attend together, and what they see."""

    piece: _Piece
    offset: int
    """Index of the first one in the forward pass."""
    first: int
    """All of them attend to all slots before this one."""
    bias: Tensor
    """(tokens, stop - first) 0 where a token attends to a slot, else minus infinity."""


class _Extension:
    """Attention of new tokens to the slots of their rows, in which it keeps their keys."""

    def __init__(self, cache: TreeCache, pieces: Sequence[_Piece]) -> None:
        self.cache = cache
        self.pieces = pieces
        self._blocks: dict[int | None, list[_Block]] = {}

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        cache = self.cache
        if module not in cache.kept:
            shape = cache.positions.shape
            cache.kept[module] = empty_like(key, value, shape[0], shape[1])
        kept, offset = cache.kept[module], 0
        for p in self.pieces:
            end = offset + p.stop - p.start
            kept.keys[p.row, ..., p.start : p.stop] = key[:, offset:end].transpose(1, 2)
            kept.values[p.row, :, p.start : p.stop] = value[:, offset:end]
            offset = end
        if window not in self._blocks:
            self._blocks[window] = list(self._blocks_of(window, value.dtype))
        query = query * scaling
        found = value.new_empty(query.shape[1], query.shape[0], value.shape[-1])
        for block in self._blocks[window]:
            row, stop = block.piece.row, block.piece.stop
            keys, values = kept.keys[row, ..., :stop], kept.values[row, :, :stop]
            part = slice(block.offset, block.offset + len(block.bias))
            grouped = query[:, part].reshape(len(keys), -1, query.shape[-1])
            scores = capped(grouped @ keys, softcap)
            seen = scores.view(len(keys), -1, len(block.bias), stop)
            seen[..., block.first :] += block.bias
            out = torch.softmax(scores, -1) @ values
            found[part] = out.view(query.shape[0], len(block.bias), -1).transpose(0, 1)
        return found

    def _blocks_of(self, window: int | None, dtype: torch.dtype) -> list[_Block]:
        blocks, offset = [], 0
        for p in self.pieces:
            for start in range(p.start, p.stop, QUERY_BLOCK):
                stop = min(start + QUERY_BLOCK, p.stop)
                hidden = ~self._visible(p.row, start, stop, window)
                first = int(hidden.any(0).long().argmax()) if hidden.any() else stop
                bias = hidden.new_zeros(hidden[:, first:].shape, dtype=dtype)
                bias.masked_fill_(hidden[:, first:], float("-inf"))
                blocks.append(_Block(_Piece(p.row, start, stop), offset, first, bias))
                offset += stop - start
        return blocks

    def _visible(self, row: int, start: int, stop: int, window: int | None) -> Tensor:
        """(stop - start, stop) bool: whether each of these tokens attends to each slot."""
        positions, ends = self.cache.positions[row, :stop], self.cache.ends[row, :stop]
        index = torch.arange(stop, device=ends.device)
        query = index[start:, None]
        seen = (index <= query) & (query < ends)
        if window is not None:
            seen &= positions[start:, None] - positions < window
        return seen


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores with their size limited, in models that do so."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap
