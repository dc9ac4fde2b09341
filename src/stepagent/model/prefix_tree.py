"""Prefix trees: the batch format of every loss, in which each shared token is forwarded once.

An expert trajectory is a trunk; each action, the expert's or the agent's own, is a *path* that
leaves the trunk at its state. A `PrefixTree` merges equal prefixes, so paths that begin alike share
those tokens too. `pack` lays out trees in preorder as `Row`s for the model:

- token q attends to token k exactly if `k <= q < subtree_end[k]`: to its ancestors and itself;
- the position of a token is its depth in the tree, not its index in the row;
- a token at a branch point predicts several next tokens: its logits are used once for each child.

Outputs are mapped back to the original paths, so a loss on a `Pack` equals the same loss on the
paths one at a time, in value and gradient (called gradient-equivalent in Tree Training,
arXiv 2511.00413).
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

ROOT = -1
"""Parent of a tree's first token."""
NONE = -1
"""In place of a node."""


class PrefixTree:
    """A trie of token ids with marked paths; takes 16 bytes for each token."""

    def __init__(self) -> None:
        """Makes an empty tree."""
        self.tokens = array("i")
        self.parents = array("i")
        self.paths: list[tuple[int, ...]] = []
        self._newest_child = array("i", [NONE])
        """Of the root, then of each node."""
        self._sibling = array("i")
        """For each node its parent's child that was the newest before it."""

    def __len__(self) -> int:
        """Number of distinct tokens, each forwarded once."""
        return len(self.tokens)

    def add(self, parent: int, tokens: Sequence[int]) -> list[int]:
        """Adds tokens below `parent`, sharing existing nodes; returns their nodes."""
        nodes = []
        for token in tokens:
            node = newest = self._newest_child[parent + 1]
            while node != NONE and self.tokens[node] != token:
                node = self._sibling[node]
            if node == NONE:
                node = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self._sibling.append(newest)
                self._newest_child.append(NONE)
                self._newest_child[parent + 1] = node
            nodes.append(node)
            parent = node
        return nodes

    def add_path(self, parent: int, tokens: Sequence[int]) -> list[int]:
        """Adds tokens as `add` does and marks them as a path, whose log-probability is evaluated.

        Raises `ValueError` for an empty path, and for one without a token before it.
        """
        if parent == ROOT:
            raise ValueError("a path needs a state before it to predict its first token")
        if not tokens:
            raise ValueError("a path needs at least one token")
        nodes = self.add(parent, tokens)
        self.paths.append(tuple(nodes))
        return nodes

    def ancestors(self, node: int) -> list[int]:
        """The nodes from the tree's first token down to `node`, both included."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def sum_by_path(self, values: Tensor) -> Tensor:
        """(targets,) -> (paths,), the sum over the tokens of each path of this tree alone."""
        path = np.repeat(np.arange(len(self.paths)), [len(path) for path in self.paths])
        return values.new_zeros(len(self.paths)).index_add(0, torch.from_numpy(path), values)

    def separate(self) -> list["PrefixTree"]:
        """One tree for each path with its prefix: the same paths, with nothing shared."""
        trees = []
        for path in self.paths:
            tree = PrefixTree()
            prefix = tree.add(ROOT, [self.tokens[n] for n in self.ancestors(self.parents[path[0]])])
            tree.add_path(prefix[-1], [self.tokens[n] for n in path])
            trees.append(tree)
        return trees


@dataclass(frozen=True)
class Row:
    """Trees laid out one after another for a single forward pass."""

    token_ids: Tensor
    """(length,)"""
    positions: Tensor
    """(length,) depth of each token in its tree."""
    subtree_end: Tensor
    """(length,) index after the last descendant of each token."""
    predictors: Tensor
    """(predictors,) indices of the tokens whose next-token logits are needed, each once."""

    @property
    def is_sequence(self) -> bool:
        """Whether nothing branches, so that plain causal attention gives the same result."""
        return bool((self.subtree_end == len(self.subtree_end)).all())

    def mask(self, window: int | None = None) -> Tensor:
        """(1, 1, length, length) bool: true if the query (dimension 2) attends to the key (3).

        With a window a query attends to its `window` nearest ancestors only, itself included,
        counted by depth, as a sliding-window layer does on the path alone.
        """
        index = torch.arange(len(self.token_ids), device=self.token_ids.device)
        query, key = index[:, None], index[None, :]
        seen = (key <= query) & (query < self.subtree_end[None, :])
        if window is not None:
            seen &= self.positions[:, None] - self.positions[None, :] < window
        return seen[None, None]

    def to(self, device: torch.device) -> "Row":
        """The row on a device."""
        return Row(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Pack:
    """Rows that hold a set of trees, and where the log-probabilities of their paths are found.

    Predictor and token indices count through all rows. `targets` are the tokens of all paths, in
    the order of the trees and of the paths within a tree.
    """

    rows: tuple[Row, ...]
    target_predictor: Tensor
    """(targets,) index of the predictor whose logits predict the token."""
    target_ids: Tensor
    """(targets,) the token's id."""
    target_path: Tensor
    """(targets,) index of the path that the token belongs to."""
    path_state: Tensor
    """(paths,) index of the predictor of the path's first token: the end of its state."""
    trees: tuple[int, ...]
    """Indices of the trees in the pack, in the order of their paths."""

    @property
    def num_paths(self) -> int:
        """Number of paths."""
        return len(self.path_state)

    @property
    def num_tokens(self) -> int:
        """Number of tokens forwarded."""
        return sum(len(row.token_ids) for row in self.rows)

    def sum_by_path(self, values: Tensor) -> Tensor:
        """(targets,) -> (paths,), the sum over each path's tokens."""
        return values.new_zeros(self.num_paths).index_add(0, self.target_path, values)

    def to(self, device: torch.device) -> "Pack":
        """The pack on a device."""
        return replace(
            self,
            rows=tuple(row.to(device) for row in self.rows),
            target_predictor=self.target_predictor.to(device),
            target_ids=self.target_ids.to(device),
            target_path=self.target_path.to(device),
            path_state=self.path_state.to(device),
        )


def _preorder(tree: PrefixTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Preorder index, subtree size and depth of every node; children keep their order."""
    count = len(tree)
    size = [1] * count
    # A child is always added after its parent, so one sweep in each direction is enough.
    for node in range(count - 1, 0, -1):
        if tree.parents[node] != ROOT:
            size[tree.parents[node]] += size[node]
    index, depth, free = [0] * count, [0] * count, [0] * count
    next_root = 0
    for node, parent in enumerate(tree.parents):
        if parent == ROOT:
            index[node] = next_root
            next_root += size[node]
        else:
            index[node] = free[parent]
            free[parent] += size[node]
            depth[node] = depth[parent] + 1
        free[node] = index[node] + 1
    return np.array(index), np.array(size), np.array(depth)


def fill_rows(sizes: Sequence[int], token_budget: int) -> list[list[int]]:
    """Item indices of each row: first fit, largest first; an oversized item gets its own row."""
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for row, left in enumerate(room):
            if sizes[item] <= left:
                rows[row].append(item)
                room[row] -= sizes[item]
                break
        else:
            rows.append([item])
            room.append(token_budget - sizes[item])
    return rows


def pack(
    trees: Sequence[PrefixTree],
    token_budget: int,
    *,
    shared: bool = True,
    choose: Callable[[Sequence[float]], Sequence[int]] = lambda sizes: range(len(sizes)),
) -> Iterator[Pack]:
    """Packs trees into batches of at most `token_budget` tokens; a longer tree is a pack alone.

    A tree is never split, so a loss may compare any paths of one tree. With `shared=False` each
    path gets its own row, for models whose layers cannot compute a tree mask. Paths, their order
    and their values stay the same; the budget then counts repeated prefixes too.

    `choose` may leave out packs: given their numbers of tokens, it returns the indices of the
    others.
    """
    forests = [[tree] if shared else tree.separate() for tree in trees]
    sizes = [sum(map(len, forest)) for forest in forests]
    groups = fill_rows(sizes, token_budget)
    for number in choose([float(sum(sizes[i] for i in group)) for group in groups]):
        group = groups[number]
        every = [tree for i in group for tree in forests[i]]
        yield _lay_out([every] if shared else [[tree] for tree in every], group)


def lay_out(
    forest: Sequence[PrefixTree], reads: Sequence[Sequence[int]]
) -> tuple[Row, list[np.ndarray]]:
    """Lays out trees as a row whose predictors are the nodes `reads[i]` of each tree i.

    Also returns, for each tree, the index of each of its nodes in the row.
    """
    tokens, depths, ends, places = [], [], [], []
    offset = 0
    for tree in forest:
        index, size, depth = _preorder(tree)
        order = np.argsort(index)
        tokens.append(np.array(tree.tokens, dtype=np.int64)[order])
        depths.append(depth[order])
        ends.append((index + size)[order] + offset)
        places.append(index + offset)
        offset += len(tree)
    needed = [place[np.array(nodes)] for place, nodes in zip(places, reads, strict=True)]
    row = Row(
        token_ids=torch.from_numpy(np.concatenate(tokens)),
        positions=torch.from_numpy(np.concatenate(depths)),
        subtree_end=torch.from_numpy(np.concatenate(ends)),
        predictors=torch.from_numpy(np.unique(np.concatenate(needed))),
    )
    return row, places


def _lay_out(row_trees: Sequence[Sequence[PrefixTree]], names: Sequence[int]) -> Pack:
    """A pack with one row for each group of trees; `names` are the indices of the trees."""
    rows = []
    predictor, ids, lengths = [], [], []
    num_predictors = 0
    for forest in row_trees:
        reads = [[tree.parents[node] for path in tree.paths for node in path] for tree in forest]
        row, places = lay_out(forest, reads)
        needed = row.predictors.numpy()
        for tree, place, nodes in zip(forest, places, reads, strict=True):
            predictor.append(np.searchsorted(needed, place[np.array(nodes)]) + num_predictors)
            ids.append(np.array([tree.tokens[node] for path in tree.paths for node in path]))
            lengths += [len(path) for path in tree.paths]
        rows.append(row)
        num_predictors += len(needed)
    predictors = np.concatenate(predictor)
    first = np.cumsum(lengths) - lengths
    return Pack(
        rows=tuple(rows),
        target_predictor=torch.from_numpy(predictors),
        target_ids=torch.from_numpy(np.concatenate(ids)),
        target_path=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        path_state=torch.from_numpy(predictors[first]),
        trees=tuple(names),
    )
