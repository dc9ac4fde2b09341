"""Inspection by a sampler: its actions in all states, and their log-probabilities as read here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from stepagent.console.progress import track
from stepagent.model.forward import Layers
from stepagent.model.generation import Decoding, Generated
from stepagent.model.packs import read_paths
from stepagent.model.prefix_tree import PrefixTree
from stepagent.model.reading import read
from stepagent.model.sampler import Sampler
from stepagent.model.sampling import random_numbers
from stepagent.model.states import add_states
from stepagent.processes import ranks
from stepagent.rendering.renderer import RenderedTrajectory


def ask(
    sampler: Sampler,
    demonstrations: Sequence[RenderedTrajectory],
    decoding: Decoding,
    end_id: int,
    *,
    seed: int,
    num_actions: int,
) -> dict[int, list[Generated]]:
    """For each demonstration of this process's share the actions, `num_actions` for each state."""
    share = ranks.own([float(len(d.actions)) for d in demonstrations])

    def every_state() -> Iterator[tuple[int, int, list[int]]]:
        for i in share:
            for step, state in enumerate(demonstrations[i].states):
                yield i, step, state

    def asked() -> Iterator[tuple[list[int], float]]:
        total = sum(len(demonstrations[i].actions) for i in share)
        for i, step, state in track(every_state(), "Inspection", total=total):
            name = demonstrations[i].trajectory.id
            for k in range(num_actions):
                yield state, float(random_numbers(seed, name, step, k, count=1))

    found = dict[int, Generated]()
    sampler.act(asked(), decoding, end_id, found.__setitem__)
    in_order = iter(sorted(found))
    return {
        i: [found[next(in_order)] for _ in range(num_actions * len(demonstrations[i].actions))]
        for i in share
    }


def read_again(
    sampler: Sampler,
    layers: Layers,
    demonstrations: Sequence[RenderedTrajectory],
    actions_of: Mapping[int, Sequence[Generated]],
    temperature: float,
) -> dict[int, list[Generated]]:
    """The actions with log-probabilities of this process instead of the sampler's.

    All processes must call this. Raises what `Sampler.check` raises if the two differ.
    """
    trees = []
    for i, demonstration in enumerate(demonstrations):
        tree = PrefixTree()
        states = add_states(tree, demonstration)
        num_actions = len(actions_of[i]) // len(states)
        for number, action in enumerate(actions_of[i]):
            tree.add_path(states[number // num_actions], action.token_ids)
        trees.append(tree)
    logprobs = read_paths(
        layers, trees, lambda packed: packed.sum_by_path(read(layers, packed).logprobs)
    )
    found = {i: values.clamp(max=0).tolist() for i, values in enumerate(logprobs)}
    sampler.check(
        [action for i in found for action in actions_of[i]],
        [logprob for own in found.values() for logprob in own],
        temperature,
    )
    return {
        i: [replace(a, logprob=p) for a, p in zip(actions_of[i], own, strict=True)]
        for i, own in found.items()
    }
