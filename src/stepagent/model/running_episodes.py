"""Generation in running episodes: what an episode has said and seen stays in the cache.

Each episode is a row of a `TreeCache`, to which its observations and actions are appended.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stepagent.model.forward import Layers
from stepagent.model.generation import Branch, Decoding, Generated, decode, decode_alone, sample
from stepagent.model.kv_cache import NEVER, NewTokens, TreeCache
from stepagent.model.row_ends import RowEnds


class RunningEpisodes:
    """The keys and values of a batch of episodes, kept between turns: one row for each."""

    def __init__(self, layers: Layers, count: int) -> None:
        """An empty cache for `count` episodes."""
        self.layers = layers
        self.cache = TreeCache(layers, count)
        self.seen: list[list[int]] = [[] for _ in range(count)]
        """The tokens of each episode in the cache."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drops all episodes that are not listed."""
        self.cache.keep_rows(rows)
        self.seen = [self.seen[row] for row in rows]

    def _read(self, rows: Sequence[int], states: Sequence[Sequence[int]]) -> Tensor:
        """Brings rows of the cache to the episodes' states; returns (rows, width), the last tokens.

        Only the tokens after the prefix that a state shares with the cache are fed.
        """
        added = []
        for row, state in zip(rows, states, strict=True):
            # The last token is always fed, because its hidden state is needed.
            kept = min(_num_shared(self.seen[row], state), len(state) - 1)
            positions = torch.arange(kept, len(state))
            self.cache.lengths[row] = kept
            added.append(
                NewTokens(
                    row=row,
                    token_ids=torch.tensor(state[kept:]),
                    positions=positions,
                    ends=torch.full_like(positions, NEVER),
                )
            )
            self.seen[row] = list(state)
        hidden = self.cache.extend(added)
        last = torch.tensor([len(new.token_ids) for new in added]).cumsum(0) - 1
        return hidden[last.to(hidden.device)]

    @torch.inference_mode()
    def act(
        self,
        states: Sequence[Sequence[int]],
        decoding: Decoding,
        end_id: int,
        uniform: Tensor,
        rows: Sequence[int],
        ended: Callable[[int, Generated], None],
    ) -> None:
        """Samples an action for each episode of `rows`, and passes it to `ended` with its row.

        `rows` are in ascending order, `states` are theirs, and `uniform` is (rows, max_new_tokens).
        Actions end in their own time.
        """
        layers = self.layers
        if not layers.takes_attention:
            for row, state, own in zip(rows, states, uniform, strict=True):
                ended(row, decode_alone(layers, state, own, decoding, end_id))
            return
        hidden = self._read(rows, states)
        branches = [
            Branch(row, len(state) - 1, own)
            for row, state, own in zip(rows, states, uniform.tolist(), strict=True)
        ]
        going = sample(layers, branches, hidden, decoding, end_id)
        for branch, goes in zip(branches, going, strict=True):
            if not goes:
                ended(branch.row, branch.generated)
        branches = [branch for branch, goes in zip(branches, going, strict=True) if goes]
        ends = RowEnds(self.cache, torch.tensor([b.row for b in branches], device=hidden.device))
        for branch in decode(layers, ends, branches, decoding, end_id):
            # The last token was sampled, but nothing has attended to it.
            self.seen[branch.row] += branch.token_ids[:-1]
            ended(branch.row, branch.generated)


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))
