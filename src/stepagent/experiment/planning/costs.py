"""Unit costs: seconds for a token, an update and a decoding step of a model of some shape.

Measured here on slices of the model with few layers, and extrapolated; or, for a GPU that is not
here, worked out from its data sheet.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from math import ceil

import numpy as np
import torch
from torch import Tensor

from stepagent.experiment.config import TrainConfig
from stepagent.experiment.planning.gpus import Gpu
from stepagent.experiment.planning.shapes import Shape
from stepagent.experiment.planning.work import Data
from stepagent.model.forward import Layers
from stepagent.model.generation import DECODED_TOGETHER, Branch, Decoding, decode_trees
from stepagent.model.lora import Adapter
from stepagent.model.policy import choose_kernel
from stepagent.model.prefix_tree import ROOT, Pack, PrefixTree, Row, lay_out
from stepagent.model.reading import read
from stepagent.model.updates import OptimizerConfig, Updater

BEYOND_CACHES = 2e8
"""Bytes of weights in the larger slice: layers that fit into a cache would seem too fast."""
REPEATS = 2
MOST_ID = 100
"""Ids of random tokens are below this."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one process, in seconds; `kept` in bytes."""

    read: float
    """For a token that is forwarded without gradient."""
    train: float
    """For a token that is forwarded and trained."""
    update: float
    """For an update of the weights, beside its tokens."""
    prefill: float
    """For a token of the states in which actions are sampled."""
    step: float
    """For a decoding step, beside its actions."""
    branch: float
    """For a token of an action that is being decoded."""
    kept: float
    """Bytes that a token keeps for the backward pass."""


def known(gpu: Gpu, shape: Shape, config: TrainConfig, data: Data) -> Costs:
    """The costs on a GPU by its data sheet and the assumptions in `gpus`."""
    context = data.tokens / 2
    layer = 2 * shape.in_layer + 4 * context * shape.width
    body, head = shape.layers * layer, 2 * shape.width * shape.config.vocab_size
    actions = config.inspection.num_actions
    predicted = data.paths(actions) / data.tree(actions)
    again = 1 if config.compute.gradient_checkpointing else 0
    # The frozen weights of LoRA need no gradient of their own.
    passes = (2 if config.lora.rank else 3) + again
    per_flop = 1 / (gpu.flops * gpu.share)
    weights = 2 * shape.weights
    trained = shape.trained(config.lora.rank)
    read = (body + predicted * head) * per_flop
    return Costs(
        read=read,
        train=passes * read,
        update=32 * trained / gpu.bandwidth,  # reads and writes weight, gradient and two moments
        prefill=body * per_flop,
        step=weights / gpu.bandwidth + shape.layers * gpu.layer_seconds,
        branch=(body + head) * per_flop,
        # Inputs of each layer; without recomputation about 17 times its width.
        kept=2 * shape.width * shape.layers * (1 if again else 17),
    )


def measured(shape: Shape, config: TrainConfig, data: Data) -> Costs:
    """The costs on this machine; takes seconds to minutes, by the size of a layer."""
    more = min(shape.layers, max(3, ceil(BEYOND_CACHES / (2 * shape.in_layer))))
    other, found = _of_slice(shape, config, data, more), dict[str, float]()
    if more == shape.layers:
        return other
    few = max(1, more // 3)
    one = _of_slice(shape, config, data, few)
    for field in fields(Costs):
        first, last = getattr(one, field.name), getattr(other, field.name)
        slope = max(0.0, (last - first) / (more - few))
        found[field.name] = first + (shape.layers - few) * slope
    return Costs(**found)


def _of_slice(shape: Shape, config: TrainConfig, data: Data, layers: int) -> Costs:
    """The costs of a model with so many layers."""
    own = _opened(shape, config, layers)
    actions = config.inspection.num_actions
    trees = [_tree(data, actions, number) for number in range(4)]
    tokens = len(trees[0])
    packs = [next(own.packs([tree])) for tree in trees]
    kept = _kept(own, packs[0]) / tokens
    with torch.no_grad():
        reading = _fastest(lambda: read(own, packs[0]).logprobs.sum().item())
    plan = OptimizerConfig(learning_rate=1e-6)
    updater = Updater(own.parameters(), plan, 10**6)

    def update(count: int) -> None:
        updater.update(own, lambda: ((read(own, p).logprobs.mean(), {}) for p in packs[:count]))

    one, four = (_fastest(partial(update, count)) for count in (1, 4))
    train = (four - one) / 3
    together = max(1, DECODED_TOGETHER // (data.steps * actions))

    def practise(count: int, length: int) -> float:
        states = [_states(data, number) for number in range(count)]
        decoding = Decoding(max_new_tokens=length)

        def decode() -> None:
            branches = [
                Branch(number, place, random)
                for number, (_, places) in enumerate(states)
                for place in places
                for random in np.random.default_rng(number).random((actions, length)).tolist()
            ]
            decode_trees(own, [row for row, _ in states], branches, decoding, end_id=-1)

        return _fastest(decode)

    length = max(2, data.action_tokens)
    first, all_steps = practise(together, 1), practise(together, length)
    step = (all_steps - first) / (length - 1)
    few = max(1, together // 4)
    step_of_few = (practise(few, length) - practise(few, 1)) / (length - 1)
    more = (together - few) * data.steps * actions
    branch = max(0.0, (step - step_of_few) / more) if more else 0.0
    return Costs(
        read=reading / tokens,
        train=train / tokens,
        update=max(0.0, one - train),
        prefill=first / (together * data.tokens),
        step=max(0.0, step - branch * together * data.steps * actions),
        branch=branch,
        kept=kept,
    )


def _opened(shape: Shape, config: TrainConfig, layers: int) -> Layers:
    """A slice as a policy would be opened."""
    device = config.compute.torch_device
    model = shape.slice(layers)
    is_half = config.compute.chosen(shape.width).is_half
    if is_half and config.lora.rank:
        model = model.to(torch.bfloat16)  # type: ignore[arg-type]
    adapter = Adapter.add(model, config.lora, seed=0) if config.lora.rank else None
    choose_kernel(model, device)
    if config.compute.gradient_checkpointing:
        model.activation_checkpointing_enable()
    own = Layers(model.to(device), adapter=adapter)  # type: ignore[arg-type]
    if is_half and not own.is_half:
        own.halve_precision()
    return own


def _tree(data: Data, actions: int, number: int) -> PrefixTree:
    """A demonstration of random tokens, with the agent's actions."""
    random = np.random.default_rng(number)
    trunk = random.integers(0, MOST_ID, data.tokens).tolist()
    tree = PrefixTree()
    nodes = tree.add(ROOT, trunk)
    for end in _ends(data):
        tree.add_path(nodes[end], trunk[end + 1 : end + 1 + data.action_tokens])
        for _ in range(actions):
            tree.add_path(nodes[end], random.integers(0, MOST_ID, data.action_tokens).tolist())
    return tree


def _states(data: Data, number: int) -> tuple[Row, list[int]]:
    """The row of a demonstration, and the places of its states' last tokens."""
    tree = PrefixTree()
    nodes = tree.add(ROOT, np.random.default_rng(number).integers(0, MOST_ID, data.tokens).tolist())
    row, (places,) = lay_out([tree], [[nodes[end] for end in _ends(data)]])
    return row, [int(places[nodes[end]]) for end in _ends(data)]


def _ends(data: Data) -> list[int]:
    """The last token of each state."""
    each = data.tokens // data.steps
    return [(number + 1) * each - data.action_tokens - 1 for number in range(data.steps)]


def _kept(own: Layers, packed: Pack) -> float:
    """Bytes that a forward pass keeps for the backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in own.model.parameters()}
    sizes = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = own.hidden(packed)
    del found
    return float(sum(sizes.values()))


def _fastest(do: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    taken = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        do()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
