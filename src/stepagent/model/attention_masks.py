"""Attention masks of prefix trees, in the form that each kind of layer and kernel takes.

Layers with full or sliding-window attention compute a tree exactly, since positions and windows
need only depths in the tree. Layers that carry a state from token to token (recurrent,
convolutional) or split the text into chunks would mix the branches, so each path gets its own row.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig, PreTrainedModel

from stepagent.model.prefix_tree import Row
from stepagent.model.tree_attention import TREE_ATTENTION, TreeMask

TREE_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers that compute a tree exactly."""

BUCKET = 128
"""Rows are padded to a multiple of this for FlexAttention, which compiles once per length."""

Mask = Tensor | BlockMask
Masks = Mask | dict[str, Mask] | None


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    """The kinds of attention of a model's layers, by transformers' names."""
    if getattr(config, "layers_block_type", None):  # older name, in models with recurrent layers
        return set(config.layers_block_type)
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    window = getattr(config, "sliding_window", None)
    return {"full_attention" if window is None else "sliding_attention"}


def follows_trees(model: PreTrainedModel) -> bool:
    """Whether all layers of the model compute a tree exactly."""
    is_recurrent = getattr(model, "_is_stateful", False)
    return not is_recurrent and layer_kinds(model.config.get_text_config()) <= TREE_KINDS


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether all layers attend through an interface, and by nothing but softmax of products.

    Models with attention sinks add something to it; those with capped scores say so by an argument.
    """
    if not model._supports_attention_backend:
        return False
    is_plain = model._supports_sdpa or hasattr(
        model.config.get_text_config(), "attn_logit_softcapping"
    )
    return is_plain and not any("sink" in name for name, _ in model.named_parameters())


def tree_masks(config: PreTrainedConfig, row: Row) -> Masks:
    """The mask of a row as a model's layers take it; None for plain causal attention."""
    implementation = config._attn_implementation
    if implementation == "flex_attention":
        return by_kind(config, lambda window: _block_mask(row, window))
    if implementation == TREE_ATTENTION:
        return by_kind(config, lambda window: TreeMask.of(row, window))
    if row.is_sequence:
        # The model's own causal mask is equal, and SDPA then need not build one.
        return None
    return by_kind(config, lambda window: dense(row.mask(window), implementation))


def by_kind(config: PreTrainedConfig, mask: Callable[[int | None], Mask]) -> Masks:
    """One mask for each kind of layer in the model; `mask` takes a window size or None."""
    kinds, window = layer_kinds(config), getattr(config, "sliding_window", None)
    windows = {"full_attention": None, "sliding_attention": window}
    masks = {kind: mask(windows[kind]) for kind in sorted(kinds)}
    # Models with one kind of layer take its mask, those with several a dictionary.
    return masks if len(masks) > 1 else next(iter(masks.values()))


def dense(mask: Tensor, implementation: str | None) -> Tensor:
    """Converts a bool mask for an attention implementation: eager attention adds it to scores."""
    if implementation != "eager":
        return mask
    lowest = torch.finfo(torch.get_default_dtype()).min
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)


def _block_mask(row: Row, window: int | None) -> BlockMask:
    """FlexAttention's mask of a row, which has to be padded to a multiple of `BUCKET`."""
    end, depth = row.subtree_end, row.positions

    def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < end[key])
        return seen if window is None else seen & (depth[query] - depth[key] < window)

    length = len(end)
    return create_block_mask(visible, None, None, length, length, device=str(end.device))


def filled_up(row: Row) -> Row:
    """Pads a row to a multiple of `BUCKET` with tokens that no other token attends to."""
    length = len(row.token_ids)
    extra = torch.arange(length, -(-length // BUCKET) * BUCKET, device=row.token_ids.device)
    return Row(
        token_ids=torch.cat([row.token_ids, torch.zeros_like(extra)]),
        positions=torch.cat([row.positions, torch.zeros_like(extra)]),
        subtree_end=torch.cat([row.subtree_end, extra + 1]),
        predictors=row.predictors,
    )
