"""Generation: actions in all states of many trajectories at once.

Trajectories are rows of a `TreeCache`, which are forwarded once. Actions branch off and are decoded
together, so that each weight is read once for a token of all of them. Models whose attention cannot
be replaced generate for one state after another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from stepagent.bounds import AMOUNT, COUNT, check_bounds
from stepagent.model.branches import Branches
from stepagent.model.forward import Layers
from stepagent.model.kv_cache import NewTokens, TreeCache, room_for
from stepagent.model.prefix_tree import Row
from stepagent.model.row_ends import RowEnds
from stepagent.model.sampling import choose

DECODED_TOGETHER = 256
"""Most actions decoded together: a step forwards one token of each. More would hardly be faster,
and several processes would have fewer groups to share."""


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


@dataclass(eq=False)
class Branch:
    """An action that is being sampled in a state."""

    row: int
    """Row of the cache."""
    slot: int
    """Slot of the last token of the row that the action follows; at first the state's last."""
    uniform: Sequence[float]
    """A random number in [0, 1) for each token of the longest action."""
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0

    @property
    def generated(self) -> Generated:
        """The action, once it is complete."""
        return Generated(tuple(self.token_ids), min(0.0, self.logprob))


def sample(
    layers: Layers, branches: Sequence[Branch], hidden: Tensor, decoding: Decoding, end_id: int
) -> list[bool]:
    """Appends a token to each branch, given the hidden states before it (branches, width).

    Returns which of them go on.
    """
    uniform = torch.tensor([b.uniform[len(b.token_ids)] for b in branches], dtype=torch.float64)
    ids, logprobs = choose(layers.logits(hidden), decoding.temperature, uniform.to(hidden.device))
    for branch, token, logprob in zip(branches, ids.tolist(), logprobs.tolist(), strict=True):
        branch.token_ids.append(token)
        branch.logprob += logprob
    longest = decoding.max_new_tokens
    return [b.token_ids[-1] != end_id and len(b.token_ids) < longest for b in branches]


def decode(
    layers: Layers,
    together: Branches | RowEnds,
    branches: Sequence[Branch],
    decoding: Decoding,
    end_id: int,
) -> Iterator[Branch]:
    """Goes on with all branches, which `together` forwards; yields each once it is complete."""
    while branches:
        latest = torch.tensor([b.token_ids[-1] for b in branches], device=layers.model.device)
        going = sample(layers, branches, together.step(latest), decoding, end_id)
        complete = [branch for branch, goes in zip(branches, going, strict=True) if not goes]
        branches = [branch for branch, goes in zip(branches, going, strict=True) if goes]
        if complete and branches:
            together.keep(torch.tensor(going, device=latest.device))
        yield from complete


def decoding_groups(
    layers: Layers, lengths: Sequence[int], num_branches: Sequence[int]
) -> list[list[int]]:
    """Indices of the trees to decode together, for their numbers of tokens and of branches.

    Trees of a group have similar lengths, because each takes as much memory as the longest.
    """
    most_branches = min(DECODED_TOGETHER, 2 * layers.token_budget)
    most_tokens = room_for(layers)
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
    """The actions of the branches, which begin in the rows: each row is forwarded once.

    Where an action goes on as its tree does, it needs no forward pass of its own. An agent that
    acts like the expert is so decoded where it differs.
    """
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
    size = min(DECODED_TOGETHER, 2 * layers.token_budget)
    for first in range(0, len(branches), size):
        own = branches[first : first + size]
        if left := _follow(layers, rows, own, hidden, decoding, end_id):
            together = Branches(
                cache,
                torch.tensor([b.row for b in left], device=hidden.device),
                torch.tensor([b.slot for b in left], device=hidden.device),
                decoding.max_new_tokens - min(len(b.token_ids) for b in left),
            )
            for _ in decode(layers, together, left, decoding, end_id):
                pass
    return [branch.generated for branch in branches]


def _follow(
    layers: Layers,
    rows: Sequence[Row],
    branches: Sequence[Branch],
    hidden: Tensor,
    decoding: Decoding,
    end_id: int,
) -> list[Branch]:
    """Samples while the tokens are those of the rows; returns the branches that then go on.

    `hidden` are the states of all rows' tokens.
    """
    tokens = [row.token_ids.tolist() for row in rows]
    ends = [row.subtree_end.tolist() for row in rows]
    starts = list(accumulate((len(own) for own in tokens), initial=0))
    left = []
    while branches:
        places = torch.tensor([starts[b.row] + b.slot for b in branches], device=hidden.device)
        going = sample(layers, branches, hidden[places], decoding, end_id)
        followed = []
        for branch, goes in zip(branches, going, strict=True):
            if not goes:
                continue
            child = _child(tokens[branch.row], ends[branch.row], branch)
            if child is None:
                left.append(branch)
            else:
                branch.slot = child
                followed.append(branch)
        branches = followed
    return left


def _child(tokens: Sequence[int], ends: Sequence[int], branch: Branch) -> int | None:
    """The slot of the branch's last token, if the row's tree goes on with it."""
    child = branch.slot + 1
    while child < ends[branch.slot]:
        if tokens[child] == branch.token_ids[-1]:
            return child
        child = ends[child]
    return None


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
