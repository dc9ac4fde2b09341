"""Writes induction heads into the weights of a new Llama, so that it can copy before training.

Small agents seldom learn from few demonstrations to copy a name from an observation into an action.
Pretrained models do it with induction heads (Elhage et al. 2021, "A mathematical framework for
transformer circuits"; Olsson et al. 2022, arXiv 2209.11895), which continue `A B ... A` with `B`.
This module writes the two attention layers of that circuit, and half of a third, whose attention is
learnt:

    layer 0          one head attends to the previous token and stores which token it is, the "note"
    layer L / 2      all heads but one attend to tokens whose note is the current token, and add
                     them to the prediction
    last layer       all heads but one add the tokens that they attend to to the prediction; where
                     they attend is left to training

The residual stream is split: one dimension is constant, `head size` dimensions hold the note, and
the others the token. No weight is frozen, and the model remains an ordinary Llama.
"""

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

ROPE_THETA = 1e8
"""Base of the rotary frequencies, so large that some dimensions hardly rotate with distance."""

_FAST = 0.02
"""Pairs of dimensions that rotate faster (radians per token) distinguish neighbouring tokens."""
_SLOW = 6e-4
"""Pairs that rotate slower compare tokens over distances of a thousand tokens and more."""
_NEIGHBOUR_SCORE = 15.0
"""Attention score of the previous token above that of its neighbours, in nats."""
_MATCH_SCORE = 12.0
"""Attention score of a match, in nats; that of different tokens is about a fifth of it, either way.
If it were much larger, training could not change what a head attends to."""
_COPY_GAIN = 6.0
"""Norm of a copied token relative to the current one, in the residual stream."""


@torch.no_grad()
def write_copying(model: LlamaForCausalLM) -> None:
    """Overwrites the embeddings and some heads of a newly initialized model, in place.

    The model must have tied embeddings and the RoPE base `ROPE_THETA`. Draws from torch's global
    generator. A model with one layer or one head has no room for the circuit and is left unchanged.
    """
    config = model.config
    if config.num_hidden_layers < 2 or config.num_attention_heads < 2:
        return
    layers = model.model.layers
    for layer in layers:
        # As in GPT-2: else the sum of the random outputs would drown the circuit.
        for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
            output.weight /= math.sqrt(2 * config.num_hidden_layers)

    size = config.hidden_size // config.num_attention_heads
    width = config.hidden_size - 1 - size
    embeddings = model.model.embed_tokens.weight
    embeddings.zero_()
    embeddings[:, 0] = 1
    # Random signs rather than Gaussians, so that every slice of every token has the same norm.
    signs = torch.randint(2, (len(embeddings), width)) * 2.0 - 1.0
    embeddings[:, 1 : 1 + width] = signs / math.sqrt(width)

    first, later = (layers[i].self_attn for i in (0, config.num_hidden_layers // 2))
    _write_previous_token_head(first, config.hidden_size, size, width)
    _write_induction_heads(later, config.hidden_size, size, width)
    if config.num_hidden_layers > 2:
        _write_pointers(layers[-1].self_attn, config.hidden_size, size, width)


def _write_previous_token_head(
    attention: LlamaAttention, hidden: int, size: int, width: int
) -> None:
    """Head 0 attends to the previous token and copies its first `size` dimensions as the note."""
    speeds = _speeds(size)
    fast = torch.nonzero(speeds > _FAST)[:, 0]
    scale = math.sqrt(hidden / 2)  # RMSNorm's factor for a constant and a token of norm 1 each
    _clear(attention, 0, size)
    # The sum of cos(speed * (distance - 1)) over the fast pairs is largest at distance 1.
    lead = float((1 - speeds[fast].cos()).sum())
    weight = math.sqrt(_NEIGHBOUR_SCORE / lead * math.sqrt(size)) / scale
    attention.q_proj.weight[fast, 0] = weight
    attention.k_proj.weight[fast, 0] = weight * speeds[fast].cos()
    attention.k_proj.weight[fast + size // 2, 0] = weight * speeds[fast].sin()
    rows = torch.arange(min(size, width))
    attention.v_proj.weight[rows, 1 + rows] = 1 / math.sqrt(scale)
    attention.o_proj.weight[1 + width + rows, rows] = 1 / math.sqrt(scale)


def _write_induction_heads(attention: LlamaAttention, hidden: int, size: int, width: int) -> None:
    """Each head compares its own part of the token with the note, and copies its own part."""
    noted = min(size, width)
    slow = torch.nonzero(_speeds(size) < _SLOW)[:, 0]
    inside = torch.cat([slow, slow + size // 2])[:noted]
    # Constant and token have norm 1 each; the note that of its share of the token.
    scale = math.sqrt(hidden / (2 + noted / width))
    match = scale * math.sqrt(len(inside) / width)  # norm of the part that a head compares
    weight = math.sqrt(_MATCH_SCORE * math.sqrt(size)) / match
    gain = math.sqrt(_COPY_GAIN / scale)
    for head, start in enumerate(range(0, width, size)):
        _clear(attention, head, size)
        compared = torch.randperm(noted)[: len(inside)]
        attention.q_proj.weight[head * size + inside, 1 + compared] = weight
        attention.k_proj.weight[head * size + inside, 1 + width + compared] = weight
        _write_copy(attention, start, min(start + size, width), gain)


def _write_pointers(attention: LlamaAttention, hidden: int, size: int, width: int) -> None:
    """Each head copies its own part of the token; its attention stays randomly initialized."""
    gain = math.sqrt(_COPY_GAIN / math.sqrt(hidden / 2))
    for head, start in enumerate(range(0, width, size)):
        own = slice(head * size, (head + 1) * size)
        attention.v_proj.weight[own] = 0
        attention.o_proj.weight[:, own] = 0
        _write_copy(attention, start, min(start + size, width), gain)


def _write_copy(attention: LlamaAttention, start: int, end: int, gain: float) -> None:
    """Makes the value of a head these dimensions of the token, and adds it to the same ones."""
    copied = torch.arange(start, end)
    attention.v_proj.weight[copied, 1 + copied] = gain
    attention.o_proj.weight[1 + copied, copied] = gain


def _speeds(size: int) -> Tensor:
    """(size / 2,) RoPE's rotation of the dimensions (i, i + size / 2), in radians per token."""
    return ROPE_THETA ** (-torch.arange(0, size, 2) / size)


def _clear(attention: LlamaAttention, head: int, size: int) -> None:
    own = slice(head * size, (head + 1) * size)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[own] = 0
    attention.o_proj.weight[:, own] = 0
