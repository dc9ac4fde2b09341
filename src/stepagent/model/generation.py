"""Generation: actions in all states of many trajectories at once, and in running episodes.

Trajectories and episodes are rows of a `TreeCache`, which are forwarded once. Actions branch off
and are decoded together, so that each weight is read once for a token of all of them. Models whose
attention cannot be replaced generate for one state after another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from stepagent.bounds import AMOUNT, COUNT, check_bounds
from stepagent.model.branches import Branches
from stepagent.model.forward import Layers
from stepagent.model.kv_cache import NEVER, NewTokens, TreeCache, room_for
from stepagent.model.prefix_tree import Row
from stepagent.model.sampling import choose

DECODED_TOGETHER = 2
"""Actions decoded together, in token budgets: a step forwards one token of each."""


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


@dataclass(frozen=True)
class Branch:
    """A state to generate an action in, and its random numbers."""

    row: int
    """Row of the cache."""
    state: int
    """Slot of the state's last token in the row."""
    uniform: Tensor
    """(max_new_tokens,) in [0, 1), one for each token."""


def decode(
    cache: TreeCache,
    branches: Sequence[Branch],
    latest: Tensor,
    decoding: Decoding,
    end_id: int,
    ended: Callable[[int, Generated], None],
    *,
    joins: bool = False,
) -> None:
    """Samples one action for each branch, all together, and passes each to `ended` once complete.

    `latest` (branches, width) are the hidden states of the states' last tokens. With `joins` the
    cache keeps the actions' tokens, except for the last, at the ends of their rows.
    """
    device, layers = latest.device, cache.layers
    together = Branches(
        cache,
        torch.tensor([b.row for b in branches], device=device),
        torch.tensor([b.state for b in branches], device=device),
        decoding.max_new_tokens - 1,
    )
    uniform = torch.stack([b.uniform for b in branches]).to(device)
    tokens: list[list[int]] = [[] for _ in branches]
    logprobs = [0.0] * len(branches)
    active = list(range(len(branches)))
    for count in range(decoding.max_new_tokens):
        ids, logprob = choose(layers.logits(latest), decoding.temperature, uniform[:, count])
        sampled = ids.tolist()
        for branch, token, value in zip(active, sampled, logprob.tolist(), strict=True):
            tokens[branch].append(token)
            logprobs[branch] += value
        is_last = count + 1 == decoding.max_new_tokens
        going = [token != end_id and not is_last for token in sampled]
        if not all(going):
            mask = torch.tensor(going, device=device)
            if joins:
                together.join(~mask)
            for branch, goes in zip(active, going, strict=True):
                if not goes:
                    found = Generated(tuple(tokens[branch]), min(0.0, logprobs[branch]))
                    ended(branch, found)
            active = [branch for branch, goes in zip(active, going, strict=True) if goes]
            if not active:
                return
            together.keep(mask)
            ids, uniform = ids[mask], uniform[mask]
        latest = together.step(ids)


def decoding_groups(
    layers: Layers, lengths: Sequence[int], num_branches: Sequence[int]
) -> list[list[int]]:
    """Indices of the trees to decode together, for their numbers of tokens and of branches.

    Trees of a group have similar lengths, because each takes as much memory as the longest.
    """
    most_branches, most_tokens = DECODED_TOGETHER * layers.token_budget, room_for(layers)
    groups: list[list[int]] = []
    for tree in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        group = [*groups[-1], tree] if groups else []
        if (
            group
            and sum(num_branches[i] for i in group) <= most_branches
            and len(group) * lengths[group[0]] <= most_tokens
        ):
            groups[-1] = group
        else:
            groups.append([tree])
    return groups


@torch.inference_mode()
def decode_trees(
    layers: Layers, rows: Sequence[Row], branches: Sequence[Branch], decoding: Decoding, end_id: int
) -> list[Generated]:
    """One action for each branch of the rows: each row is forwarded once."""
    cache = TreeCache(layers, len(rows))
    hidden = cache.extend(
        [
            NewTokens(
                row=number,
                token_ids=row.token_ids,
                positions=row.positions,
                ends=row.subtree_end,
            )
            for number, row in enumerate(rows)
        ]
    )
    starts = [0, *accumulate(len(row.token_ids) for row in rows)]
    found: dict[int, Generated] = {}
    size = DECODED_TOGETHER * layers.token_budget
    for first in range(0, len(branches), size):
        own = branches[first : first + size]
        places = torch.tensor([starts[b.row] + b.state for b in own], device=hidden.device)

        def ended(branch: int, action: Generated, first: int = first) -> None:
            found[first + branch] = action

        decode(cache, own, hidden[places], decoding, end_id, ended)
    return [found[branch] for branch in range(len(branches))]


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

        `states` are theirs, and `uniform` is (rows, max_new_tokens). Actions end in their own time.
        """
        if not self.layers.takes_attention:
            for row, state, own in zip(rows, states, uniform, strict=True):
                ended(row, decode_alone(self.layers, state, own, decoding, end_id))
            return
        latest = self._read(rows, states)
        branches = [
            Branch(row, len(state) - 1, own)
            for row, state, own in zip(rows, states, uniform, strict=True)
        ]

        def joined(branch: int, action: Generated) -> None:
            # The last token was sampled, but nothing has attended to it.
            self.seen[rows[branch]] += action.token_ids[:-1]
            ended(rows[branch], action)

        decode(self.cache, branches, latest, decoding, end_id, joined, joins=True)


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))
