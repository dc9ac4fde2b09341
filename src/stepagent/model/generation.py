"""Generation: actions in all states of a trajectory at once, and in running episodes.

Both keep keys and values in a `SlotCache`: the caller chooses the slot of each token and the slots
that it attends to, so nothing is left-padded, moved or computed twice. Models whose layers cannot
process prefix trees generate for one state after another.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepagent.bounds import AMOUNT, COUNT, check_bounds
from stepagent.model.forward import Layers
from stepagent.model.kv_cache import SlotCache
from stepagent.model.prefix_tree import Row


@dataclass(frozen=True)
class Generated:
    """One sampled action."""

    token_ids: tuple[int, ...]
    """Ends with the end token unless the length limit was reached."""
    logprob: float
    """Sum of the tokens' log-probabilities at temperature 1, in nats."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How actions are sampled from the policy."""

    max_new_tokens: int = 32
    """Maximum length of an action, in tokens."""
    temperature: float = 1.0
    """Softmax temperature; 0 is greedy decoding."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"max_new_tokens": COUNT, "temperature": AMOUNT})


def random_numbers(seed: int, name: str, *key: int, count: int) -> Tensor:
    """(count,) uniform numbers in [0, 1) for one decision, whatever else is in its batch."""
    # The length is part of the seed because numpy treats [1] and [1, 0] as the same seed.
    source = np.random.default_rng([seed, zlib.crc32(name.encode()), len(key), *key])
    return torch.from_numpy(source.random(count))


def choose(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Samples token ids (n,) from logits (n, vocabulary).

    Also returns their log-probabilities at temperature 1, (n,). `uniform` (n,) in [0, 1) selects
    the token by the inverse of the cumulative distribution, so a sample depends on its own random
    numbers only, not on the rest of the batch.
    """
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
        # Scaling by the last entry keeps a number near 1 within the vocabulary despite rounding.
        ids = torch.searchsorted(
            cumulative, (uniform.double() * cumulative[:, -1])[:, None], right=True
        )
        ids = ids[:, 0].clamp(max=logits.shape[-1] - 1)
    return ids, torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]


@dataclass(frozen=True)
class Branch:
    """A state to generate an action in, and its random numbers."""

    state: int
    """Index of the state's last token in the row."""
    uniform: Tensor
    """(max_new_tokens,) in [0, 1), one for each token."""


@torch.inference_mode()
def decode_branches(
    layers: Layers, row: Row, branches: Sequence[Branch], decoding: Decoding, end_id: int
) -> list[Generated]:
    """One action for each branch: forwards the row once, then decodes all branches together.

    A branch attends to its state's ancestors in the row's trees and to its own tokens only.
    """
    device = layers.model.device
    row = row.to(device)
    total = len(row.token_ids)
    index = torch.arange(total, device=device)
    cache, only_row = SlotCache(layers, 1), torch.zeros(1, dtype=torch.long, device=device)
    hidden = cache.forward(
        row.token_ids[None], row.positions[None], index[None], row.mask()[0], only_row
    )
    state = torch.tensor([b.state for b in branches], device=device)
    sees_row = (index <= state[:, None]) & (state[:, None] < row.subtree_end)
    first_position = row.positions[state] + 1
    uniform = torch.stack([b.uniform for b in branches]).to(device)

    tokens: list[list[int]] = [[] for _ in branches]
    logprobs = torch.zeros(len(branches), dtype=torch.float64)
    active = torch.arange(len(branches), device=device)
    owner = torch.empty(0, dtype=torch.long, device=device)
    latest = hidden[0, state]
    for count in range(decoding.max_new_tokens):
        ids, logprob = choose(layers.logits(latest), decoding.temperature, uniform[active, count])
        logprobs[active.cpu()] += logprob.double().cpu()
        for branch, token in zip(active.tolist(), ids.tolist(), strict=True):
            tokens[branch].append(token)
        going = ids != end_id
        active, ids = active[going], ids[going]
        if not len(active) or count + 1 == decoding.max_new_tokens:
            break
        owner = torch.cat([owner, active])
        columns = torch.arange(total + len(owner) - len(active), total + len(owner), device=device)
        mask = torch.cat([sees_row[active], owner == active[:, None]], dim=1)
        positions = first_position[active] + count
        latest = cache.forward(ids[None], positions[None], columns[None], mask[None], only_row)[0]
    return [
        Generated(tuple(t), min(0.0, float(p)))
        for t, p in zip(tokens, logprobs.tolist(), strict=True)
    ]


@torch.inference_mode()
def decode_alone(
    layers: Layers, state: Sequence[int], uniform: Tensor, decoding: Decoding, end_id: int
) -> Generated:
    """One action after a state, with the model's own cache: if layers cannot share prefixes."""
    fed = torch.tensor([list(state)], device=layers.model.device)
    tokens: list[int] = []
    total, cache = 0.0, None
    for count in range(decoding.max_new_tokens):
        latest, cache = layers.continue_sequence(fed, cache)
        ids, logprob = choose(
            layers.logits(latest), decoding.temperature, uniform[count : count + 1].to(fed.device)
        )
        total += float(logprob)
        tokens.append(int(ids))
        if tokens[-1] == end_id:
            break
        fed = ids[None]
    return Generated(tuple(tokens), min(0.0, total))


class RunningEpisodes:
    """The key-value cache of a batch of episodes, kept between turns; slots are positions."""

    def __init__(self, layers: Layers, count: int) -> None:
        """An empty cache for `count` episodes."""
        self.layers = layers
        self.cache = SlotCache(layers, count)
        self.seen: list[list[int]] = [[] for _ in range(count)]
        """The tokens of each episode in the cache."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drops all episodes that are not listed."""
        self.cache.keep_rows(rows)
        self.seen = [self.seen[row] for row in rows]

    def _feed(self, rows: Sequence[int], new: Sequence[Sequence[int]]) -> Tensor:
        """Appends new tokens to rows; returns the hidden states (rows, width) of the last ones.

        Rows with fewer tokens are padded; the padding goes to slots that are overwritten before any
        query attends to them.
        """
        device = self.layers.model.device
        longest = max(map(len, new))
        starts = torch.tensor([len(self.seen[row]) for row in rows], device=device)
        token_ids = torch.tensor([[*n, *[0] * (longest - len(n))] for n in new], device=device)
        positions = starts[:, None] + torch.arange(longest, device=device)
        slots = torch.arange(int(positions.max()) + 1, device=device)
        visible = slots <= positions[:, :, None]
        row_ids = torch.tensor(rows, device=device)
        hidden = self.cache.forward(token_ids, positions, positions, visible, row_ids)
        for row, tokens in zip(rows, new, strict=True):
            self.seen[row] += tokens
        last = torch.tensor([max(len(n) - 1, 0) for n in new], device=device)
        return hidden[torch.arange(len(rows), device=device), last]

    def _read(self, states: Sequence[Sequence[int]]) -> Tensor:
        """Brings the cache to each episode's state; returns the last hidden states.

        They are (episodes, width). Only the tokens after the prefix that a state shares with the
        cache are fed. Observations differ much in length, so episodes are grouped by the number of
        new tokens, and at most half of the forwarded tokens are padding.
        """
        groups: dict[int, list[int]] = {}
        for row, state in enumerate(states):
            # The last token is always fed, because its hidden state is needed.
            kept = min(_num_shared(self.seen[row], state), len(state) - 1)
            del self.seen[row][kept:]
            groups.setdefault((len(state) - kept).bit_length(), []).append(row)
        found = [
            self._feed(rows, [states[row][len(self.seen[row]) :] for row in rows])
            for rows in groups.values()
        ]
        order = torch.tensor([row for rows in groups.values() for row in rows])
        return torch.cat(found)[order.argsort().to(found[0].device)]

    @torch.inference_mode()
    def act(
        self, states: Sequence[Sequence[int]], decoding: Decoding, end_id: int, uniform: Tensor
    ) -> list[Generated]:
        """One action for each episode in its state; `uniform` (episodes, max_new_tokens)."""
        if not self.layers.shares_prefixes:
            return [
                decode_alone(self.layers, state, own, decoding, end_id)
                for state, own in zip(states, uniform, strict=True)
            ]
        latest = self._read(states)
        sampled: list[list[int]] = [[] for _ in states]
        logprobs = [0.0] * len(states)
        everyone = range(len(states))
        going = list(everyone)
        for count in range(decoding.max_new_tokens):
            logits = self.layers.logits(latest)
            draws = uniform[going, count].to(logits.device)
            ids, logprob = choose(logits, decoding.temperature, draws)
            for row, token, value in zip(going, ids.tolist(), logprob.tolist(), strict=True):
                sampled[row].append(token)
                logprobs[row] += value
            going = [row for row in going if sampled[row][-1] != end_id]
            if not going or count + 1 == decoding.max_new_tokens:
                break
            # Finished episodes stay without new tokens, since dropping them would copy the cache.
            new = [sampled[row][-1:] if row in going else [] for row in everyone]
            latest = self._feed(everyone, new)[going]
        return [Generated(tuple(t), min(0.0, p)) for t, p in zip(sampled, logprobs, strict=True)]


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))
