"""Packs of trees that this process evaluates, and values gathered from those of all processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from stepagent.model.device import until_all_fit
from stepagent.model.forward import Layers
from stepagent.model.prefix_tree import ROOT, Pack, PrefixTree, fill_rows, pack
from stepagent.processes import ranks

ROWS_EACH = 2
"""Rows for each process with which shares are about equal."""


def own_packs(layers: Layers, trees: Sequence[PrefixTree], token_budget: int) -> Iterator[Pack]:
    """This process's share of the packs within a token budget, on the model's device.

    After a pack, the caller makes its forward pass, and its backward pass if gradients are enabled.
    If weights are sharded, processes with fewer packs than others then make idle passes.
    """
    left = 0

    def own(costs: Sequence[float]) -> list[int]:
        nonlocal left
        mine = ranks.own(costs)
        left = max(ranks.from_all(len(mine))) if layers.is_sharded else len(mine)
        return mine

    for packed in pack(trees, token_budget, shared=layers.shares_prefixes, choose=own):
        left -= 1
        yield packed.to(layers.model.device)
    for _ in range(left):
        _pass_idly(layers)


def budget_to_share(sizes: Sequence[int], token_budget: int, processes: int) -> int:
    """The token budget with which so many processes can share a batch of trees of these sizes.

    On a GPU a row may hold a whole batch. Then rows are halved until each process has some, or each
    tree has its own.
    """
    budget = token_budget
    while (
        processes > 1
        and budget > max(sizes, default=budget)
        and len(fill_rows(sizes, budget)) < ROWS_EACH * processes
    ):
        budget //= 2
    return budget


def _pass_idly(layers: Layers) -> None:
    """A pass without effect, for which other processes wait."""
    tree = PrefixTree()
    tree.add_path(tree.add(ROOT, [0])[-1], [0])
    (packed,) = layers.packs([tree])
    hidden = layers.hidden(packed)
    if torch.is_grad_enabled():
        hidden[:0].sum().backward()  # type: ignore[no-untyped-call]


def batch_packs(
    layers: Layers, trees: Sequence[PrefixTree], batch: Sequence[int]
) -> Iterator[tuple[Pack, list[int]]]:
    """This process's packs of a batch of trees, each with the indices of its trees in path order.

    So a part of a loss is divided by totals of the whole batch, not of the packs.
    """
    chosen = [trees[i] for i in batch]
    budget = budget_to_share([len(t) for t in chosen], layers.token_budget, ranks.count())
    for packed in own_packs(layers, chosen, budget):
        yield packed, [batch[i] for i in packed.trees]


def gather(values: Sequence[Tensor], trees: Sequence[int], device: torch.device) -> Tensor:
    """Concatenates the values of some trees and moves them to a device."""
    return torch.cat([values[i] for i in trees]).to(device)


@torch.no_grad()
def read_trees(
    layers: Layers, trees: Sequence[PrefixTree], read: Callable[[Pack], tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """Applies `read` to all trees, without gradient; returns its values for each tree, on the CPU.

    `read` returns tensors with one value for each path or each path token of a pack; they are split
    by tree. If memory runs out, the token budget is halved; raises `OutOfMemory` if that is not
    enough.
    """
    found = until_all_fit(
        lambda: _read(own_packs(layers, trees, layers.token_budget), trees, read),
        layers.halve_budget,
        in_step=layers.is_sharded,
    )
    every = ranks.gathered(found)
    return [every[tree] for tree in range(len(trees))]


def _read(
    packs: Iterable[Pack],
    trees: Sequence[PrefixTree],
    read: Callable[[Pack], tuple[Tensor, ...]],
) -> dict[int, tuple[Tensor, ...]]:
    found = dict[int, tuple[Tensor, ...]]()
    for packed in packs:
        num_paths = [len(trees[i].paths) for i in packed.trees]
        num_targets = [sum(map(len, trees[i].paths)) for i in packed.trees]
        parts = [
            torch.split(values.cpu(), num_paths if len(values) == packed.num_paths else num_targets)
            for values in read(packed)
        ]
        for place, tree in enumerate(packed.trees):
            found[tree] = tuple(part[place] for part in parts)
    return found


def read_paths(
    layers: Layers, trees: Sequence[PrefixTree], read: Callable[[Pack], Tensor]
) -> list[Tensor]:
    """As `read_trees`, for a function that returns one value for each path: (paths,) per tree."""
    return [value for (value,) in read_trees(layers, trees, lambda packed: (read(packed),))]
