"""Forward passes of a language model's layers over rows of the prefix tree.

Layers with full or sliding-window attention follow a tree exactly: the mask says who sees whom, and
depth in the tree is all that positions and windows need. Layers that carry a state from token to
token (recurrent, convolutional) or cut the text into chunks would mix the branches: for a model
with any of them each path is a row of its own. Values are the same, only slower.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from stepagent.backends.adapters import Adapter
from stepagent.backends.device import CPU_TOKEN_BUDGET
from stepagent.prefix_tree import Pack, PrefixTree, Row, pack

logger = logging.getLogger(__name__)

TREE_KINDS = {"full_attention", "sliding_attention"}
"""Layers that can follow the mask of a tree."""

BUCKET = 128
"""Rows are filled up to a multiple of this for FlexAttention, which compiles for each length."""

MIN_TOKEN_BUDGET = 64
"""Below this rows hold one trajectory each, however small the budget."""

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
    if row.is_sequence:
        # The model's own mask is the same and lets SDPA skip building one.
        return None
    implementation = config._attn_implementation
    if implementation == "flex_attention":
        return by_kind(config, lambda window: _block_mask(row, window))
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


class OutOfMemory(RuntimeError):
    """Memory does not suffice even for one trajectory at a time."""


class Layers:
    """The layers of a language model below its output head, under one adapter or none."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        token_budget: int = CPU_TOKEN_BUDGET,
        is_half: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        """`token_budget` bounds the tokens that are forwarded together; `is_half` is bfloat16."""
        self.model = model
        self.token_budget = token_budget
        self.is_half = is_half
        self.adapter = adapter
        self.shares_prefixes = follows_trees(model)
        """Whether paths of a tree share a row; else each has its own."""

    @property
    def config(self) -> PreTrainedConfig:
        """Of the language model, also where it is part of a larger one."""
        return self.model.config.get_text_config()

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return cast(int, self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed from hidden states: at least float32."""
        return torch.promote_types(self.model.dtype, torch.float32)

    def parameters(self) -> list[nn.Parameter]:
        """What training updates."""
        if self.adapter is None:
            return list(self.model.parameters())
        return list(self.adapter.parameters(self.model).values())

    def copy(self, name: str) -> Self:
        """Other layers that start equal; with adapters, `name` is a new one on the same model."""
        if self.adapter is None:
            model, adapter = cast(PreTrainedModel, deepcopy(self.model.get_decoder())), None
        else:
            model, adapter = self.model, self.adapter.copy(self.model, name)
        return type(self)(
            model, token_budget=self.token_budget, is_half=self.is_half, adapter=adapter
        )

    def state(self) -> dict[str, Tensor]:
        """What `copy` made and training changed, by name."""
        if self.adapter is None:
            return self.model.state_dict()
        return {n: p.detach() for n, p in self.adapter.parameters(self.model).items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state` returned."""
        if self.adapter is None:
            self.model.load_state_dict(state)
            return
        own = self.adapter.parameters(self.model)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def halve_budget(self) -> None:
        """After memory ran out; raises `OutOfMemory` if fewer tokens at once would not help."""
        if self.token_budget <= MIN_TOKEN_BUDGET:
            raise OutOfMemory(
                f"out of memory with {self.token_budget} tokens at once; a smaller model, LoRA, "
                "gradient checkpointing or shorter trajectories would need less"
            )
        self.token_budget //= 2
        logger.info("out of memory: from now on %d tokens at once", self.token_budget)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Forward passes inside go through the own adapter, in the precision of the device."""
        if self.adapter is not None:
            self.adapter.activate(self.model)
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.is_half):
            yield

    def packs(self, trees: Sequence[PrefixTree]) -> Iterator[Pack]:
        """The trees in packs within the token budget, on the model's device."""
        for packed in pack(trees, self.token_budget, shared=self.shares_prefixes):
            yield packed.to(self.model.device)

    def row_hidden(self, row: Row) -> Tensor:
        """(length, width) final hidden states of a row."""
        length = len(row.token_ids)
        if self.config._attn_implementation == "flex_attention" and not row.is_sequence:
            row = filled_up(row)
        with self.reading():
            output = self.model.get_decoder()(
                input_ids=row.token_ids[None],
                position_ids=row.positions[None],
                attention_mask=tree_masks(self.config, row),
                use_cache=False,
            )
        return cast(Tensor, output.last_hidden_state[0, :length])

    def extend(
        self,
        token_ids: Tensor,
        positions: Tensor,
        cache: Cache,
        visible: Callable[[int | None], Tensor],
    ) -> Tensor:
        """(batch, new, width) hidden states of new tokens (batch, new) behind those in a cache.

        `visible` is given a window or None and returns the bool mask (batch, 1, new, seen).
        """
        config = self.config
        implementation = config._attn_implementation
        # FlexAttention compiles for every length, and lengths grow with every token.
        kernel = "sdpa" if implementation == "flex_attention" else implementation
        config._attn_implementation = kernel
        try:
            with self.reading():
                output = self.model.get_decoder()(
                    input_ids=token_ids,
                    position_ids=positions,
                    attention_mask=by_kind(config, lambda window: dense(visible(window), kernel)),
                    past_key_values=cache,
                    use_cache=True,
                )
        finally:
            config._attn_implementation = implementation
        return cast(Tensor, output.last_hidden_state)

    def continue_sequence(self, token_ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Hidden state (1, width) after new tokens (1, new), by the model's own cache and mask."""
        with self.reading():
            output = self.model.get_decoder()(
                input_ids=token_ids, past_key_values=cache, use_cache=True
            )
        return output.last_hidden_state[:, -1], output.past_key_values

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary) next-token logits, in at least float32."""
        head, config = cast(nn.Module, self.model.get_output_embeddings()), self.config
        with self.reading():
            logits = cast(Tensor, head(hidden))
        logits = logits.to(self.dtype)
        # What some families do behind the head: Cohere, Granite, Gemma 2.
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def hidden(self, packed: Pack) -> tuple[Tensor, Tensor]:
        """Hidden states (tokens, width) of all tokens, (predictors, width) of the predictors."""
        by_row = [self.row_hidden(row) for row in packed.rows]
        predictors = [h[row.predictors] for h, row in zip(by_row, packed.rows, strict=True)]
        return torch.cat(by_row), torch.cat(predictors)
