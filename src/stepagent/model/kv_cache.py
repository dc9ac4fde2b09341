"""A key-value cache in which the caller chooses the slot of every token.

Branches and running episodes need no left padding, no copying and no second forward pass: keys and
values are written once and stay in their slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from stepagent.model.forward import Layers


@dataclass
class _Slots:
    """The slots of the current forward pass, shared by all layers of a cache."""

    num_rows: int
    """Number of rows in the cache."""
    rows: Tensor
    """(batch,) rows that take part."""
    columns: Tensor
    """(batch, new) slots of the new tokens."""
    used: int = 0
    """Number of slots up to the highest one in use."""


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (batch, heads, capacity, width), written to given slots."""

    def __init__(self, slots: _Slots) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots

    keys: Tensor
    values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, (_, heads, _, width) = self.slots.num_rows, key_states.shape
        self.keys = key_states.new_zeros(rows, heads, 0, width)
        self.values = value_states.new_zeros(rows, heads, 0, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = self.slots
        missing = slots.used - self.keys.shape[2]
        if missing > 0:
            grown = (0, 0, 0, max(missing, self.keys.shape[2]))
            self.keys = torch.nn.functional.pad(self.keys, grown)
            self.values = torch.nn.functional.pad(self.values, grown)
        # Indices on both sides of a slice put the indexed axes first: (batch, new, heads, width).
        rows = slots.rows[:, None]
        self.keys[rows, :, slots.columns] = key_states.transpose(1, 2)
        self.values[rows, :, slots.columns] = value_states.transpose(1, 2)
        keys, values = self.keys[:, :, : slots.used], self.values[:, :, : slots.used]
        if len(slots.rows) == len(keys):
            return keys, values
        return keys[slots.rows], values[slots.rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.used, 0

    def get_seq_length(self) -> int:
        return self.slots.used

    def get_max_length(self) -> int:
        return -1


class SlotCache:
    """A key-value cache whose slots are chosen by the caller."""

    def __init__(self, layers: Layers, num_rows: int) -> None:
        """Starts empty; grows as higher slots are used."""
        self.model_layers = layers
        self.slots = _Slots(num_rows, torch.empty(0), torch.empty(0))
        self.positions = torch.zeros(num_rows, 0, dtype=torch.long, device=layers.model.device)
        """(rows, slots) position of the token in each slot."""
        count = layers.config.num_hidden_layers
        self.layers = [_SlotLayer(self.slots) for _ in range(count)]
        self.cache = Cache(layers=list(self.layers))

    def forward(
        self, token_ids: Tensor, positions: Tensor, columns: Tensor, mask: Tensor, rows: Tensor
    ) -> Tensor:
        """Hidden states (batch, new, width) of new tokens, stored in slots `columns` of `rows`.

        `token_ids`, `positions` and `columns` are (batch, new), `rows` (batch,) in rising order;
        `mask` is bool (batch, new, slots) over all slots up to the highest one used.
        """
        self.slots.rows, self.slots.columns = rows, columns
        self.slots.used = mask.shape[-1]
        if (missing := mask.shape[-1] - self.positions.shape[1]) > 0:
            self.positions = torch.nn.functional.pad(self.positions, (0, missing))
        self.positions[rows[:, None], columns] = positions
        seen = self.positions[rows, None, : mask.shape[-1]]

        def visible(window: int | None) -> Tensor:
            near = mask if window is None else mask & (positions[:, :, None] - seen < window)
            return near[:, None]

        return self.model_layers.extend(token_ids, positions, self.cache, visible)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drops all rows that are not listed."""
        self.slots.num_rows = len(rows)
        self.positions = self.positions[list(rows)]
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[list(rows)], layer.values[list(rows)]
