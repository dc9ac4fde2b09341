"""Checks when a model is opened: whether trees are read exactly, and what bfloat16 changes."""

import torch
from transformers import PreTrainedTokenizerBase

from stepagent.model.device import fitting_tokens
from stepagent.model.forward import Layers
from stepagent.model.prefix_tree import ROOT, PrefixTree
from stepagent.model.reading import read
from stepagent.model.sharding import local
from stepagent.model.weights import place
from stepagent.processes import ranks

SAMPLE = (
    "You are in the kitchen. Here you see: a cupboard (closed), a table with a glass jar on it, "
    "and a door to the hallway (open).\n> open cupboard\nThe cupboard is open. It holds 3 cups."
)
"""A text on which precisions are compared."""

MOST_CHANGE = 0.1
"""Nats per token of `SAMPLE` by which bfloat16 may change log-probabilities."""


class PolicyError(ValueError):
    """A policy cannot be used, or not for this trajectory; the message is one line."""


@torch.no_grad()
def check_reading(layers: Layers) -> None:
    """Compares log-probabilities of a small tree with plain calls of the model.

    If the tree's differ, each path gets its own row from then on. Raises `PolicyError` if single
    paths differ too: then the model is more than decoder + LM head.
    """
    name = place(layers.model.name_or_path or "model")
    if getattr(layers.config, "max_position_embeddings", None) is None:
        raise PolicyError(f"{name}: its config lacks max_position_embeddings")
    whole = layers.model if layers.adapter is None else layers.adapter.peft
    root, left, right = list(range(1, 6)), [6, 7, 8], [9, 10, 11]
    layers.activate()
    expected = []
    for branch in (left, right):
        ids = torch.tensor([[*root, *branch]], device=layers.model.device)
        logits = whole(input_ids=ids).logits[0, len(root) - 1 : -1]
        chosen = torch.log_softmax(logits.to(layers.dtype), -1)
        expected.append(chosen.gather(1, ids[0, len(root) :, None])[:, 0])
    tree = PrefixTree()
    state = tree.add(ROOT, root)[-1]
    for branch in (left, right):
        tree.add_path(state, branch)

    # For rounding: the tokens are unlikely ones, for which bfloat16 is off by half a nat.
    atol, rtol = (0.5, 0.05) if layers.is_half else (0.05, 0.0)

    def reads_alike() -> bool:
        (packed,) = layers.packs([tree])
        found = read(layers, packed).logprobs
        return ranks.all_of(torch.allclose(found, torch.cat(expected), atol=atol, rtol=rtol))

    if reads_alike():
        return
    layers.shares_prefixes = False
    if not reads_alike():
        raise PolicyError(f"{name}: unsupported model: its logits differ from decoder + LM head")


@torch.no_grad()
def halve_and_compare(layers: Layers, tokenizer: PreTrainedTokenizerBase) -> float:
    """Changes the model to bfloat16; returns by how much log-probabilities change.

    That is the mean absolute change over the tokens of `SAMPLE`, in nats per token.
    """
    ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    tree = PrefixTree()
    tree.add_path(tree.add(ROOT, ids[:1])[-1], ids[1:])
    (packed,) = layers.packs([tree])
    before = read(layers, packed).logprobs
    layers.halve_precision()
    return ranks.from_first(float((read(layers, packed).logprobs - before).abs().mean()))


def trained_tokens(layers: Layers) -> int:
    """Extrapolates from two trial passes how many training tokens fit into the GPU's memory."""
    peaks = []
    for tokens in (512, 1024):
        tree = PrefixTree()
        tree.add_path(tree.add(ROOT, [0])[-1], [i % 100 for i in range(1, tokens)])
        torch.cuda.reset_peak_memory_stats()
        (packed,) = layers.packs([tree])
        read(layers, packed).logprobs.sum().backward()  # type: ignore[no-untyped-call]
        peaks.append(torch.cuda.max_memory_allocated())
    parameters = layers.parameters()
    for parameter in parameters:
        parameter.grad = None
    torch.cuda.empty_cache()
    reserved = 12 * sum(local(p).numel() for p in parameters)  # gradient and AdamW's two moments
    fitting = fitting_tokens(torch.cuda.mem_get_info()[0], reserved, (peaks[1] - peaks[0]) / 512)
    return min(ranks.from_all(fitting))
