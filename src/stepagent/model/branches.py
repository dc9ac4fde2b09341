"""Branches: short continuations of rows in a `TreeCache`, each one token longer after every step.

A branch attends to its state's ancestors in the row and to its own tokens. Its own keys and values
are kept apart from the row's, so a step costs a branch the same however many others there are, and
rows stay as they are for other branches.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stepagent.model.kv_cache import Kept, TreeCache, capped, empty_like


@dataclass(frozen=True)
class _Places:
    """Where attention finds each branch: all rows from `low` to `high` have as many places."""

    rows: Tensor
    """(branches,) the row that each branch leaves."""
    state: Tensor
    """(branches,) the slot in that row at which it leaves."""
    low: int
    high: int
    per_row: int
    place: Tensor
    """(branches,) counted from the first place of row `low`."""

    @property
    def count(self) -> int:
        return (self.high - self.low) * self.per_row


def _placed(rows: Tensor, state: Tensor) -> _Places:
    """As few places as possible."""
    low, high = int(rows.min()), int(rows.max()) + 1
    counts = torch.bincount(rows - low, minlength=high - low)
    order = torch.argsort(rows, stable=True)
    number = torch.empty_like(rows)
    before = counts.cumsum(0) - counts
    number[order] = torch.arange(len(rows), device=rows.device) - before[rows[order] - low]
    per_row = int(counts.max())
    return _Places(rows, state, low, high, per_row, (rows - low) * per_row + number)


class Branches:
    """The branches that are decoded together."""

    def __init__(self, cache: TreeCache, rows: Tensor, state: Tensor, length: int) -> None:
        """Branches of at most `length` tokens, (branches,): they leave `rows` at slots `state`."""
        self.cache = cache
        self.length = length
        self.count = 0
        """Number of tokens in each branch."""
        self._at = _placed(rows, state)
        self._kept: dict[nn.Module, Kept] = {}
        self._bias: dict[int | None, Tensor] = {}

    def keep(self, going: Tensor) -> None:
        """Drops the branches that are false in the mask `going` (branches,)."""
        old, source = self._at, self._at.place[going]
        new = _placed(old.rows[going], old.state[going])
        if 2 * new.count > old.count:
            # A few empty places cost less than moving keys and values.
            self._at = replace(old, rows=new.rows, state=new.state, place=source)
            return
        self._at = new
        self._bias.clear()
        for kept in self._kept.values():
            for name in ("keys", "values"):
                everyone = getattr(kept, name)
                moved = everyone.new_zeros(new.count, *everyone.shape[1:])
                moved[new.place] = everyone[source]
                setattr(kept, name, moved)

    def step(self, token_ids: Tensor) -> Tensor:
        """Appends a token to each branch, (branches,); returns their hidden states."""
        at = self._at
        positions = self.cache.positions[at.rows, at.state] + 1 + self.count
        if any(window is not None for window in self._bias):
            self._bias.clear()  # a window moves on with every token
        hidden = self.cache.layers.forward_with(self._attend, token_ids, positions)
        self.count += 1
        return hidden

    def _attend(
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
        at, num_heads, now = self._at, len(key), self.count + 1
        if module not in self._kept:
            self._kept[module] = empty_like(key, value, at.count, self.length)
        own, row = self._kept[module], self.cache.kept[module]
        own.keys[at.place, ..., self.count] = key.transpose(0, 1)
        own.values[at.place, :, self.count] = value.transpose(0, 1)
        shape = (at.high - at.low, at.per_row, num_heads, len(query) // num_heads)
        padded = value.new_zeros(at.count, len(query), query.shape[-1])
        padded[at.place] = query.transpose(0, 1) * scaling
        # Here (rows, places, heads, group, ...); the trunk takes (rows, heads, group, places, ...).
        padded = padded.view(*shape, -1)
        bias = self._bias_of(window, value.dtype)
        slots = bias.shape[-1]
        first = 0 if window is None else max(0, now - window)
        keys, values = (
            row.keys[at.low : at.high, ..., :slots],
            row.values[at.low : at.high, :, :slots],
        )
        to_row = padded.permute(0, 2, 3, 1, 4).reshape(shape[0], num_heads, -1, query.shape[-1])
        to_row = to_row @ keys
        to_own = padded.flatten(0, 1) @ own.keys[..., first:now]
        scores = torch.cat(
            [
                to_row.view(shape[0], num_heads, shape[3], at.per_row, slots),
                to_own.view(*shape, -1).permute(0, 2, 3, 1, 4),
            ],
            dim=-1,
        )
        scores = capped(scores, softcap)
        scores[..., :slots] += bias
        weights = torch.softmax(scores, -1)
        from_row = weights[..., :slots].flatten(2, 3) @ values
        from_own = (
            weights[..., slots:].permute(0, 3, 1, 2, 4).flatten(0, 1) @ own.values[:, :, first:now]
        )
        found = from_row.view(shape[0], num_heads, shape[3], at.per_row, -1).permute(0, 3, 1, 2, 4)
        found = found.reshape(at.count, len(query), -1) + from_own.reshape(at.count, len(query), -1)
        return found[at.place]

    def _bias_of(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(rows, 1, 1, places, slots): 0 where a branch attends to a slot of its row, or -inf."""
        if window in self._bias:
            return self._bias[window]
        at, cache = self._at, self.cache
        slots = max(cache.lengths[at.low : at.high])
        ends = cache.ends[at.low : at.high, None, :slots]
        positions = cache.positions[at.low : at.high, None, :slots]
        state = at.state.new_full((at.count,), -1)
        state[at.place] = at.state
        state = state.view(at.high - at.low, at.per_row, 1)
        seen = (torch.arange(slots, device=ends.device) <= state) & (state < ends)
        if window is not None:
            latest = torch.gather(positions[:, 0], 1, state[:, :, 0].clamp(min=0)) + 1 + self.count
            seen &= latest[:, :, None] - positions < window
        bias = torch.zeros(seen.shape, dtype=dtype, device=ends.device)
        bias = bias.masked_fill_(~seen, float("-inf"))[:, None, None]
        self._bias[window] = bias
        return bias
