"""Pretraining of a model made from scratch, so that it copies names from its context.

    1. reading: language modelling of whole demonstrations, observations included
    2. copying: behavioural cloning of demonstrations with permuted names and shortened observations

A pretrained model can copy a name from an instruction into an action hundreds of tokens later. From
the few action tokens of the demonstrations a new model does not learn that: memorizing the names is
easier. So stage 2 permutes the names, the tokens that occur in few demonstrations, among each
other, differently in every pass, and only copying helps (cf. Chan et al. 2022, arXiv 2205.05055:
many rare, changing classes lead to in-context learning). Shortened observations bring a name closer
to its copy. Names absent from the context carry no loss: they cannot be copied, and would dominate
the loss.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from stepagent.algorithms.sft import SFTConfig, maximize_likelihood
from stepagent.bounds import AMOUNT, SHARE, check_bounds
from stepagent.inspection import step_tree
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import ROOT, PrefixTree
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretraining of a model made from scratch."""

    reading: SFTConfig = SFTConfig(
        epochs=1, batch_size=1, optimizer=OptimizerConfig(learning_rate=2e-3)
    )
    """Stage 1: language modelling of whole demonstrations."""
    copying: SFTConfig = SFTConfig(
        epochs=12, batch_size=1, optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    """Stage 2: cloning of demonstrations with permuted names, so that the model learns to copy."""
    renamed: float = 0.7
    """Share (0 to 1) of the demonstrations whose names are permuted in each pass of stage 2."""
    rare: float = 0.3
    """A token is a name if fewer than this share (0 to 1) of the demonstrations contain it."""
    characters: int = 40
    """Characters to which stage 2 shortens each observation."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for values out of range."""
        check_bounds(self, {"renamed": SHARE, "rare": AMOUNT, "characters": AMOUNT})


def pretrain(
    policy: Policy,
    demonstrations: Sequence[Trajectory],
    config: PretrainConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> None:
    """Trains the policy in place on demonstrations, which must fit into its context."""
    whole = [policy.render(d) for d in demonstrations]
    trees = [_as_one_path(d) for d in whole]
    maximize_likelihood(policy, trees, config.reading, "Reading", seed=seed, log=log)
    short = [policy.render(_cut(d, config.characters)) for d in demonstrations]
    special = {int(i) for i in policy.renderer.tokenizer.all_special_ids}
    own_names = names(whole, config.rare) - special
    rng = np.random.default_rng(seed)
    practice = [
        copying_tree(rename(d, own_names, rng) if rng.random() < config.renamed else d, own_names)
        for _ in range(config.copying.epochs)
        for d in short
    ]
    once = replace(config.copying, epochs=1)
    maximize_likelihood(policy, practice, once, "Copying", seed=seed, log=log)


def names(demonstrations: Sequence[RenderedTrajectory], rare: float) -> set[int]:
    """Ids of the tokens that occur in less than the share `rare` of the demonstrations."""
    counts = Counter(
        token
        for d in demonstrations
        for token in {t for part in (*d.additions, *d.actions) for t in part}
    )
    return {token for token, count in counts.items() if count < rare * len(demonstrations)}


def rename(
    demonstration: RenderedTrajectory, own_names: set[int], rng: np.random.Generator
) -> RenderedTrajectory:
    """The demonstration with its names replaced by a random permutation of all names."""
    before = sorted(own_names)
    now = dict(zip(before, rng.permutation(before).tolist(), strict=True))

    def renamed(ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(now.get(token, token) for token in ids)

    return replace(
        demonstration,
        additions=tuple(map(renamed, demonstration.additions)),
        actions=tuple(map(renamed, demonstration.actions)),
    )


def copying_tree(demonstration: RenderedTrajectory, own_names: set[int]) -> PrefixTree:
    """The tree of the expert's actions, without the names that are absent from their context."""
    tree = step_tree(demonstration).tree
    tree.paths = [run for path in tree.paths for run in _known_runs(tree, path, own_names)]
    return tree


def _known_runs(
    tree: PrefixTree, path: Sequence[int], own_names: set[int]
) -> Iterator[tuple[int, ...]]:
    """The runs of a path between names that are absent from the context before them."""
    seen = {tree.tokens[node] for node in tree.ancestors(tree.parents[path[0]])}

    def is_new_name(node: int) -> bool:
        token = tree.tokens[node]
        is_new = token in own_names and token not in seen
        seen.add(token)
        return is_new

    for is_new, run in groupby(path, is_new_name):
        if not is_new:
            yield tuple(run)


def _cut(demonstration: Trajectory, characters: int) -> Trajectory:
    steps = [
        step.model_copy(update={"observation": step.observation[:characters]})
        for step in demonstration.steps
    ]
    return demonstration.model_copy(update={"steps": tuple(steps)})


def _as_one_path(demonstration: RenderedTrajectory) -> PrefixTree:
    """The demonstration as a single path: every token after the first is predicted."""
    *_, last = demonstration.states
    first, *rest = (*last, *demonstration.actions[-1])
    tree = PrefixTree()
    tree.add_path(tree.add(ROOT, [first])[-1], rest)
    return tree
