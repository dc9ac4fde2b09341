"""Copying, written into the weights of a fresh Llama: gradients need not find it first.

Small agents seldom learn from few demonstrations to copy a name from an observation into an action.
Pretrained models do it with induction heads (Elhage et al. 2021, "A mathematical framework for
transformer circuits"; Olsson et al. 2022, arXiv 2209.11895): after `A B ... A` comes `B`. The two
attention layers of that circuit are written down here, and half of a third one, which may learn to
look for anything:

    layer 0          one head looks at the previous token and notes which token that is
    layer L / 2      all heads but one look where the noted token is the current one, and add the
                     token found there to the prediction
    last layer       all heads but one look everywhere, and add the tokens found there to the
                     prediction; where to look is left to training

The residual stream is split: one dimension is constant, one head's size of them hold the note, all
others the token. Nothing is frozen, and the model stays an ordinary Llama.
"""

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

ROPE_THETA = 1e8
"""Base of the rotary frequencies, so large that part of each head hardly turns with distance."""

_FAST = 0.02
"""Pairs of dimensions that turn faster, in radians for each token, tell neighbours apart."""
_SLOW = 6e-4
"""Pairs that turn slower compare contents over a thousand tokens and more."""
_NEIGHBOUR_SCORE = 15.0
"""By how many nats the previous token is ahead of the tokens beside it."""
_MATCH_SCORE = 12.0
"""Nats of a match; two different tokens get about a fifth of it, up or down. With much more,
training could not turn a head to anything else."""
_COPY_GAIN = 6.0
"""How much longer the token that is copied is than the current one, in the residual stream."""


@torch.no_grad()
def write_copying(model: LlamaForCausalLM) -> None:
    """Replaces embeddings and some heads of a freshly made model with tied embeddings, in place.

    The model's config has to have `ROPE_THETA`. Draws from torch's global generator. A model of one
    layer or one head has no room for the circuit and stays as it is.
    """
    config = model.config
    if config.num_hidden_layers < 2 or config.num_attention_heads < 2:
        return
    layers = model.model.layers
    for layer in layers:
        # As in GPT-2: else the sum of all random outputs is louder than the circuit.
        for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
            output.weight /= math.sqrt(2 * config.num_hidden_layers)

    size = config.hidden_size // config.num_attention_heads
    width = config.hidden_size - 1 - size
    embeddings = model.model.embed_tokens.weight
    embeddings.zero_()
    embeddings[:, 0] = 1
    # Signs, not Gaussians: then every part of every token has the same length.
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
    """Head 0 attends one token back and copies the first `size` dimensions of that token."""
    speeds = _speeds(size)
    fast = torch.nonzero(speeds > _FAST)[:, 0]
    scale = math.sqrt(hidden / 2)  # RMSNorm makes it of constant and token, 1 each
    _clear(attention, 0, size)
    # Of all distances the sum of cos(speed * (distance - 1)) is largest at one.
    lead = float((1 - speeds[fast].cos()).sum())
    weight = math.sqrt(_NEIGHBOUR_SCORE / lead * math.sqrt(size)) / scale
    attention.q_proj.weight[fast, 0] = weight
    attention.k_proj.weight[fast, 0] = weight * speeds[fast].cos()
    attention.k_proj.weight[fast + size // 2, 0] = weight * speeds[fast].sin()
    rows = torch.arange(min(size, width))
    attention.v_proj.weight[rows, 1 + rows] = 1 / math.sqrt(scale)
    attention.o_proj.weight[1 + width + rows, rows] = 1 / math.sqrt(scale)


def _write_induction_heads(attention: LlamaAttention, hidden: int, size: int, width: int) -> None:
    """Each head compares other dimensions of the token with the note, and copies other ones."""
    noted = min(size, width)
    slow = torch.nonzero(_speeds(size) < _SLOW)[:, 0]
    inside = torch.cat([slow, slow + size // 2])[:noted]
    # Constant and token have length 1 each, the note has that of its share of the token.
    scale = math.sqrt(hidden / (2 + noted / width))
    match = scale * math.sqrt(len(inside) / width)  # length of what a head compares
    weight = math.sqrt(_MATCH_SCORE * math.sqrt(size)) / match
    gain = math.sqrt(_COPY_GAIN / scale)
    for head, start in enumerate(range(0, width, size)):
        _clear(attention, head, size)
        compared = torch.randperm(noted)[: len(inside)]
        attention.q_proj.weight[head * size + inside, 1 + compared] = weight
        attention.k_proj.weight[head * size + inside, 1 + width + compared] = weight
        _write_copy(attention, start, min(start + size, width), gain)


def _write_pointers(attention: LlamaAttention, hidden: int, size: int, width: int) -> None:
    """Each head copies other dimensions of the token; where it looks stays as random as it was."""
    gain = math.sqrt(_COPY_GAIN / math.sqrt(hidden / 2))
    for head, start in enumerate(range(0, width, size)):
        own = slice(head * size, (head + 1) * size)
        attention.v_proj.weight[own] = 0
        attention.o_proj.weight[:, own] = 0
        _write_copy(attention, start, min(start + size, width), gain)


def _write_copy(attention: LlamaAttention, start: int, end: int, gain: float) -> None:
    """Values are these dimensions of the token, and are added to the same ones."""
    copied = torch.arange(start, end)
    attention.v_proj.weight[copied, 1 + copied] = gain
    attention.o_proj.weight[1 + copied, copied] = gain


def _speeds(size: int) -> Tensor:
    """(size / 2,) radians for each token by which RoPE turns the dimensions (i, i + size / 2)."""
    return ROPE_THETA ** (-torch.arange(0, size, 2) / size)


def _clear(attention: LlamaAttention, head: int, size: int) -> None:
    own = slice(head * size, (head + 1) * size)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[own] = 0
    attention.o_proj.weight[:, own] = 0
