"""Rows of a `TreeCache` that grow by one token in each step, as running episodes do.

Keys and values of a new token go into its row at once, so a step attends to nothing else.
"""

import torch
from torch import Tensor, nn

from stepagent.model.kv_cache import NEVER, TreeCache, capped


class RowEnds:
    """The ends of the rows that are decoded together, one action in each."""

    def __init__(self, cache: TreeCache, rows: Tensor) -> None:
        """Of `rows` (actions,), in ascending order; none of them is empty."""
        self.cache = cache
        self._rows = rows
        self._bias: dict[int | None, Tensor] = {}

    def keep(self, going: Tensor) -> None:
        """Drops the actions that are false in the mask `going` (actions,); their rows stay."""
        self._rows = self._rows[going]

    def step(self, token_ids: Tensor) -> Tensor:
        """Appends a token to each row, (actions,); returns their hidden states."""
        cache, rows = self.cache, self._rows
        numbers = rows.tolist()
        slots = torch.tensor([cache.lengths[row] for row in numbers], device=rows.device)
        for row in numbers:
            cache.lengths[row] += 1
        cache.reserve(max(cache.lengths[row] for row in numbers))
        positions = cache.positions[rows, slots - 1] + 1
        cache.positions[rows, slots] = positions
        cache.ends[rows, slots] = NEVER
        self._slots, self._low, self._high = slots, min(numbers), max(numbers) + 1
        self._bias.clear()
        return cache.layers.forward_with(self._attend, token_ids, positions)

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
        kept, rows, num_heads = self.cache.kept[module], self._rows, len(key)
        kept.keys[rows, ..., self._slots] = key.transpose(0, 1)
        kept.values[rows, :, self._slots] = value.transpose(0, 1)
        bias = self._bias_of(window, value.dtype)
        all_rows, slots = slice(self._low, self._high), bias.shape[-1]
        query = query.transpose(0, 1) * scaling
        if len(rows) < len(bias):
            # Rows in between that have ended take part, because moving the others costs more.
            padded = query.new_zeros(len(bias), *query.shape[1:])
            padded[rows - self._low] = query
            query = padded
        grouped = query.view(len(bias), num_heads, -1, query.shape[-1])
        scores = capped(grouped @ kept.keys[all_rows, ..., :slots], softcap)
        found = torch.softmax(scores.add_(bias), -1) @ kept.values[all_rows, :, :slots]
        found = found.view(len(bias), -1, value.shape[-1])
        return found if len(rows) == len(bias) else found[rows - self._low]

    def _bias_of(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(rows, 1, 1, slots): 0 where a new token attends to a slot of its row, or -inf."""
        if window in self._bias:
            return self._bias[window]
        cache, place = self.cache, self._rows - self._low
        longest = int(self._slots.max()) + 1
        last = self._slots.new_zeros(self._high - self._low)
        last[place] = self._slots
        seen = torch.arange(longest, device=last.device) <= last[:, None]
        if window is not None:
            positions = cache.positions[self._low : self._high, :longest]
            seen &= positions.gather(1, last[:, None]) - positions < window
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        bias = bias.masked_fill_(~seen, float("-inf"))[:, None, None]
        self._bias[window] = bias
        return bias
