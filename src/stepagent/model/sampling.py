"""Sampling of tokens: the random numbers of each decision, and the tokens that they select."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn

BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed first when one is sampled."""


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
        # Cumulative sums of blocks, then of the entries of one block: sums of all are slow.
        weights = torch.exp((logits - logits.max(-1, keepdim=True).values).div_(temperature))
        weights = nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK))
        blocks = weights.view(len(weights), -1, BLOCK)
        sums = blocks.sum(-1, dtype=torch.float64)
        block, rest = _inverse(sums, uniform.double() * sums.sum(-1))
        within, _ = _inverse(blocks[torch.arange(len(blocks), device=block.device), block], rest)
        ids = block * BLOCK + within
    return ids, logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def _inverse(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first entry of each row (n, entries) up to which they sum to more than `target`.

    Also returns how far the target is into that entry. Neither rounding nor a target outside of the
    row selects an entry of zero.
    """
    cumulative = weights.double().cumsum(-1)
    target = target.clamp(min=0)
    index = torch.minimum(
        (cumulative <= target[:, None]).sum(-1), (cumulative < cumulative[:, -1:]).sum(-1)
    )
    chosen = index[:, None]
    before = cumulative.gather(-1, chosen) - weights.gather(-1, chosen)
    return index, target - before[:, 0]
