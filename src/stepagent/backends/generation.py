"""Generation with transformers: practised branches of trunks, and the turns of running episodes.

Both keep keys and values in a `SlotCache`: the caller says into which slot each token goes and
which slots it may see, so nothing is padded to the left, moved or computed again.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepagent.backends.forward import head_logits
from stepagent.backends.slot_cache import SlotCache


@dataclass(frozen=True)
class Generated:
    """One sampled action."""

    token_ids: tuple[int, ...]
    """Ends with the end token, unless the length limit came first."""
    logprob: float
    """Sum of the tokens' log-probabilities at temperature 1, in nats."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How actions are drawn from the policy."""

    max_new_tokens: int = 32
    """Longest action, in tokens."""
    temperature: float = 1.0
    """Softmax temperature; 0 takes the most likely token."""


def random_numbers(seed: int, name: str, *key: int, count: int) -> Tensor:
    """(count,) uniform numbers in [0, 1) of one decision, whatever else is in its batch."""
    # The length is part of the seed because numpy takes [1] and [1, 0] for the same one.
    source = np.random.default_rng([seed, zlib.crc32(name.encode()), len(key), *key])
    return torch.from_numpy(source.random(count))


def choose(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (n,) and their log-probabilities at temperature 1 (n,) for logits (n, vocabulary).

    `uniform` (n,) in [0, 1) picks the token by the inverse of the cumulative distribution, so that
    what a branch samples depends on its own random numbers only, not on what else is in the batch.
    """
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
        # Scaling by the last entry keeps a draw near 1 inside the vocabulary despite rounding.
        ids = torch.searchsorted(
            cumulative, (uniform.double() * cumulative[:, -1])[:, None], right=True
        )
        ids = ids[:, 0].clamp(max=logits.shape[-1] - 1)
    return ids, torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]


@dataclass(frozen=True)
class Branch:
    """A state to act from, the first `prefix_length` tokens of a trunk, and its random numbers."""

    trunk: int
    prefix_length: int
    uniform: Tensor
    """(max_new_tokens,) in [0, 1), one for each token to be sampled."""


@torch.inference_mode()
def decode_branches(
    model: PreTrainedModel,
    trunks: Sequence[Sequence[int]],
    branches: Sequence[Branch],
    decoding: Decoding,
    end_id: int,
) -> list[Generated]:
    """One action for each branch: the trunks are forwarded once, then all branches decode together.

    Every branch sees its own prefix of its trunk and its own tokens, nothing else.
    """
    device = model.device
    lengths = torch.tensor([len(t) for t in trunks])
    ends = lengths.cumsum(0)
    starts = ends - lengths
    total = int(ends[-1])
    start_of = torch.repeat_interleave(starts, lengths).to(device)
    index = torch.arange(total, device=device)
    cache, only_row = SlotCache(model, 1), torch.zeros(1, dtype=torch.long, device=device)
    hidden = cache.forward(
        torch.tensor([token for trunk in trunks for token in trunk], device=device)[None],
        (index - start_of)[None],
        index[None],
        ((index <= index[:, None]) & (index >= start_of[:, None]))[None],
        only_row,
    )
    prefix_length = torch.tensor([b.prefix_length for b in branches], device=device)
    first = torch.stack([starts[b.trunk] for b in branches]).to(device)
    sees_trunk = (index >= first[:, None]) & (index < (first + prefix_length)[:, None])
    uniform = torch.stack([b.uniform for b in branches]).to(device)

    tokens: list[list[int]] = [[] for _ in branches]
    logprobs = torch.zeros(len(branches), dtype=torch.float64)
    active = torch.arange(len(branches), device=device)
    owner = torch.empty(0, dtype=torch.long, device=device)
    latest = hidden[0, first + prefix_length - 1]
    for count in range(decoding.max_new_tokens):
        ids, logprob = choose(
            head_logits(model, latest), decoding.temperature, uniform[active, count]
        )
        logprobs[active.cpu()] += logprob.double().cpu()
        for branch, token in zip(active.tolist(), ids.tolist(), strict=True):
            tokens[branch].append(token)
        going = ids != end_id
        active, ids = active[going], ids[going]
        if not len(active) or count + 1 == decoding.max_new_tokens:
            break
        owner = torch.cat([owner, active])
        columns = torch.arange(total + len(owner) - len(active), total + len(owner), device=device)
        mask = torch.cat([sees_trunk[active], owner == active[:, None]], dim=1)
        positions = prefix_length[active] + count
        latest = cache.forward(ids[None], positions[None], columns[None], mask[None], only_row)[0]
    return [
        Generated(tuple(t), min(0.0, float(p)))
        for t, p in zip(tokens, logprobs.tolist(), strict=True)
    ]


class RunningEpisodes:
    """The key-value cache of a batch of episodes, kept across their turns; a slot is a position."""

    def __init__(self, model: PreTrainedModel, count: int) -> None:
        """`count` episodes, none of which has seen anything yet."""
        self.model = model
        self.cache = SlotCache(model, count)
        self.lengths = torch.zeros(count, dtype=torch.long, device=model.device)

    def restart(self, row: int) -> None:
        """Makes the row an episode that has seen nothing yet."""
        kept = torch.arange(len(self.lengths), device=self.lengths.device) != row
        self.lengths = torch.where(kept, self.lengths, 0)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drops every episode that is not listed."""
        self.cache.keep_rows(rows)
        self.lengths = self.lengths[list(rows)]

    def _feed(self, rows: Tensor, token_ids: Tensor, counts: Tensor) -> Tensor:
        """Appends the first `counts[i]` of `token_ids[i]` to row `rows[i]`.

        Returns the hidden state (batch, width) of the last one. What stands beyond the count goes
        to slots that are overwritten before any query may see them.
        """
        new = torch.arange(token_ids.shape[1], device=token_ids.device)
        positions = self.lengths[rows, None] + new
        slots = torch.arange(int(positions.max()) + 1, device=token_ids.device)
        visible = slots <= positions[:, :, None]
        hidden = self.cache.forward(token_ids, positions, positions, visible, rows)
        self.lengths = self.lengths.index_add(0, rows, counts)
        return hidden[torch.arange(len(rows), device=rows.device), (counts - 1).clamp(min=0)]

    def _read(self, fed: Sequence[Sequence[int]]) -> Tensor:
        """Appends each episode's new tokens; hidden state (episodes, width) of the last ones.

        Observations differ much in length: episodes with about as many new tokens go together, so
        that at most half of what is forwarded is padding.
        """
        device = self.lengths.device
        groups: dict[int, list[int]] = {}
        for row, tokens in enumerate(fed):
            groups.setdefault(len(tokens).bit_length(), []).append(row)
        found = []
        for rows in groups.values():
            counts = [len(fed[row]) for row in rows]
            padded = [[*fed[row], *[0] * (max(counts) - len(fed[row]))] for row in rows]
            parts = (torch.tensor(part, device=device) for part in (rows, padded, counts))
            found.append(self._feed(*parts))
        order = torch.tensor([row for rows in groups.values() for row in rows], device=device)
        return torch.cat(found)[order.argsort()]

    @torch.inference_mode()
    def act(
        self, fed: Sequence[Sequence[int]], decoding: Decoding, end_id: int, uniform: Tensor
    ) -> list[Generated]:
        """One action for each episode after it was fed new tokens; `uniform` as for a branch.

        The last token of an action is not in the cache yet: the next turn's tokens have to begin
        with it.
        """
        device = self.lengths.device
        everyone = torch.arange(len(fed), device=device)
        latest = self._read(fed)
        sampled: list[list[int]] = [[] for _ in fed]
        logprobs = torch.zeros(len(fed), dtype=torch.float64)
        going = torch.ones(len(fed), dtype=torch.bool, device=device)
        for count in range(decoding.max_new_tokens):
            logits = head_logits(self.model, latest)
            ids, logprob = choose(logits, decoding.temperature, uniform[:, count].to(device))
            logprobs += torch.where(going, logprob.double(), 0.0).cpu()
            for row in going.nonzero()[:, 0].tolist():
                sampled[row].append(int(ids[row]))
            going = going & (ids != end_id)
            if not going.any() or count + 1 == decoding.max_new_tokens:
                break
            latest = self._feed(everyone, ids[:, None], going.long())
        return [
            Generated(tuple(t), min(0.0, p))
            for t, p in zip(sampled, logprobs.tolist(), strict=True)
        ]
