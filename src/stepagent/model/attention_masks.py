"""Who may see whom in a row of the prefix tree, as each kind of layer and kernel takes it.

Layers with full or sliding-window attention follow a tree exactly: depth in the tree is all that
positions and windows need. Layers that carry a state from token to token (recurrent, convolutional)
or cut the text into chunks would mix the branches; they cannot share rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig, PreTrainedModel

from stepagent.model.prefix_tree import Row

TREE_KINDS = {"full_attention", "sliding_attention"}
"""Layers that can follow the mask of a tree."""

BUCKET = 128
"""Rows are filled up to a multiple of this for FlexAttention, which compiles for each length."""

Mask = Tensor | BlockMask
Masks = Mask | dict[str, Mask] | None


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    """The kinds of attention that the layers have, by the names of transformers."""
    if getattr(config, "layers_block_type", None):  # older name, of models with recurrent layers
        return set(config.layers_block_type)
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    window = getattr(config, "sliding_window", None)
    return {"full_attention" if window is None else "sliding_attention"}


def follows_trees(model: PreTrainedModel) -> bool:
    """Whether all layers of the model can follow the mask of a tree."""
    is_recurrent = getattr(model, "_is_stateful", False)
    return not is_recurrent and layer_kinds(model.config.get_text_config()) <= TREE_KINDS


def tree_masks(config: PreTrainedConfig, row: Row) -> Masks:
    """What the layers of a model take as the mask of a row; None for plain causal attention."""
    implementation = config._attn_implementation
    if implementation == "flex_attention":
        return by_kind(config, lambda window: _block_mask(row, window))
    if row.is_sequence:
        # The model's own mask is the same and lets SDPA skip building one.
        return None
    return by_kind(config, lambda window: dense(row.mask(window), implementation))


def by_kind(config: PreTrainedConfig, mask: Callable[[int | None], Mask]) -> Masks:
    """A mask for each kind of layer that the model has; `mask` takes a window or None."""
    kinds, window = layer_kinds(config), getattr(config, "sliding_window", None)
    windows = {"full_attention": None, "sliding_attention": window}
    masks = {kind: mask(windows[kind]) for kind in sorted(kinds)}
    # Models with one kind of layers take its mask, those with several a dictionary.
    return masks if len(masks) > 1 else next(iter(masks.values()))


def dense(mask: Tensor, implementation: str | None) -> Tensor:
    """A bool mask as an attention implementation takes it: eager attention adds it to scores."""
    if implementation != "eager":
        return mask
    lowest = torch.finfo(torch.get_default_dtype()).min
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)


def _block_mask(row: Row, window: int | None) -> BlockMask:
    """The mask of a row, which has to be filled up to a whole bucket."""
    end, depth = row.subtree_end, row.positions

    def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < end[key])
        return seen if window is None else seen & (depth[query] - depth[key] < window)

    length = len(end)
    return create_block_mask(visible, None, None, length, length, device=str(end.device))


def filled_up(row: Row) -> Row:
    """The row with tokens nobody sees behind it, up to a multiple of `BUCKET`."""
    length = len(row.token_ids)
    extra = torch.arange(length, -(-length // BUCKET) * BUCKET, device=row.token_ids.device)
    return Row(
        token_ids=torch.cat([row.token_ids, torch.zeros_like(extra)]),
        positions=torch.cat([row.positions, torch.zeros_like(extra)]),
        subtree_end=torch.cat([row.subtree_end, extra + 1]),
        predictors=row.predictors,
    )
