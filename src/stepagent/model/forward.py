"""Forward passes of a language model over rows of prefix trees.

If a model's layers cannot share prefixes, each path becomes a row of its own: slower, with the same
results.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from copy import deepcopy
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stepagent.model.attention_masks import (
    filled_up,
    follows_trees,
    takes_attention,
    tree_masks,
)
from stepagent.model.device import CPU_TOKEN_BUDGET
from stepagent.model.last_mlp import last_mlp_at
from stepagent.model.lean_layers import use_lean_layers
from stepagent.model.lora import Adapter
from stepagent.model.masters import Masters, cast_frozen
from stepagent.model.prefix_tree import Pack, PrefixTree, Row, pack
from stepagent.model.products import use_faster_products
from stepagent.processes import ranks

logger = logging.getLogger(__name__)

MIN_TOKEN_BUDGET = 64
"""Half of this would hardly hold a trajectory."""


class Attention(Protocol):
    """Attention of new tokens, called by each layer in turn."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """(tokens, heads, width) from queries, keys and values (heads, tokens, width).

        Each head of keys and values serves a group of neighbouring heads of queries. Positions are
        within `window` of each other; `softcap` limits the size of scores.
        """
        ...


_CALLERS_OWN = "stepagent"
"""Name under which transformers finds the attention of `Layers.forward_with`."""
_attention: ContextVar[Attention] = ContextVar("attention")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **__: object,
) -> tuple[Tensor, None]:
    """Calls the attention of the present forward pass in the way of transformers."""
    found = _attention.get()(
        module,
        query[0],
        key[0],
        value[0],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return found[None], None


AttentionInterface.register(_CALLERS_OWN, _attend)


class OutOfMemory(RuntimeError):
    """The memory is too small even for one trajectory at a time."""


class Layers:
    """The decoder and output head of a language model, with an adapter or without."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        token_budget: int = CPU_TOKEN_BUDGET,
        adapter: Adapter | None = None,
    ) -> None:
        """Forwards at most `token_budget` tokens together.

        In a bfloat16 model, trained weights get float32 masters.
        """
        use_faster_products(model)
        use_lean_layers(model)
        self.model = model
        self.token_budget = token_budget
        self.adapter = adapter
        self.masters: Masters | None = None
        self.shares_prefixes = follows_trees(model)
        """Whether the paths of a tree share a row; otherwise each has its own."""
        self._checkpointed = [
            module
            for module in model.modules()
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
        ]
        if self.is_half:
            self.masters = Masters(self._trained())

    @property
    def takes_attention(self) -> bool:
        """Whether `forward_with` can replace the attention of all layers."""
        return self.shares_prefixes and takes_attention(self.model)

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the language model, even if that is part of a larger model."""
        return self.model.config.get_text_config()

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return cast(int, self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of everything computed from hidden states: at least float32."""
        return torch.promote_types(self.model.dtype, torch.float32)

    @property
    def is_half(self) -> bool:
        """Whether the model computes in bfloat16."""
        return self.model.dtype == torch.bfloat16

    def halve_precision(self) -> None:
        """Changes the model to bfloat16; trained weights keep float32 masters."""
        self.masters = Masters(self._trained())
        cast_frozen(self.model)

    def _trained(self) -> list[nn.Parameter]:
        """The model's trained weights, in the precision in which it computes."""
        if self.adapter is None:
            return list(self.model.parameters())
        return self.adapter.parameters()

    def parameters(self) -> list[nn.Parameter]:
        """What training updates, in at least float32; `publish` then passes it on."""
        trained = self._trained()
        return trained if self.masters is None else self.masters.weights

    def publish(self) -> None:
        """Makes the model compute with updated `parameters`."""
        if self.masters is not None:
            self.masters.publish()

    def in_full_precision(self) -> AbstractContextManager[None]:
        """Context in which the model's trained weights are its `parameters`, not copies."""
        return nullcontext() if self.masters is None else self.masters.in_model()

    def copy(self, name: str) -> Self:
        """An independent copy; with LoRA only the adapter is copied, as `name`."""
        with self.in_full_precision():
            if self.adapter is None:
                model, adapter = deepcopy(self.model), None
            else:
                adapter = self.adapter.copy(name)
                model = adapter.model
        copied = type(self)(model, token_budget=self.token_budget, adapter=adapter)
        copied.shares_prefixes = self.shares_prefixes
        if self.is_half and not copied.is_half:
            copied.halve_precision()
        return copied

    def halve_budget(self) -> None:
        """Halves the token budget; raises `OutOfMemory` if it is at its minimum."""
        if self.token_budget <= MIN_TOKEN_BUDGET:
            raise OutOfMemory(
                f"out of memory with {self.token_budget} tokens at once; a smaller model, LoRA, "
                "gradient checkpointing or shorter trajectories would need less"
            )
        self.token_budget //= 2
        logger.info("out of memory: from now on %d tokens at once", self.token_budget)

    def activate(self) -> None:
        """Makes forward passes use these layers' adapter from now on."""
        if self.adapter is not None:
            self.adapter.activate()

    def packs(self, trees: Sequence[PrefixTree]) -> Iterator[Pack]:
        """Packs the trees within the token budget, on the model's device."""
        for packed in pack(trees, self.token_budget, shared=self.shares_prefixes):
            yield packed.to(self.model.device)

    def own_packs(self, trees: Sequence[PrefixTree]) -> Iterator[Pack]:
        """This process's share of the packs."""
        shared = self.shares_prefixes
        for packed in pack(trees, self.token_budget, shared=shared, choose=ranks.own):
            yield packed.to(self.model.device)

    def row_hidden(self, row: Row) -> Tensor:
        """(length, width) last hidden states of a row; right for its predictors only."""
        length, places = len(row.token_ids), row.predictors
        masks = None
        if self.shares_prefixes:
            if self.config._attn_implementation == "flex_attention":
                row = filled_up(row)
            masks = tree_masks(self.config, row)
        self.activate()
        # What is checkpointed is computed again outside of this block.
        restricted = nullcontext() if self._checkpointed else last_mlp_at(self.model, places)
        with self._checkpointing(), restricted:
            output = self.model.get_decoder()(
                input_ids=row.token_ids[None],
                position_ids=row.positions[None],
                attention_mask=masks,
                use_cache=False,
            )
        return cast(Tensor, output.last_hidden_state[0, :length])

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Context in which gradient checkpointing is active, if it was asked for.

        Layers checkpoint in training mode only, in which they could not use a cache. The rest of
        the model stays in evaluation mode: dropout would change the samples' log-probabilities.
        """
        for layer in self._checkpointed:
            layer.training = torch.is_grad_enabled()
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    def forward_with(self, attention: Attention, token_ids: Tensor, positions: Tensor) -> Tensor:
        """(tokens, width) hidden states of tokens (tokens,) at positions (tokens,).

        All layers attend through `attention`, which decides who attends to whom.
        """
        config = self.config
        implementation = config._attn_implementation
        config._attn_implementation = _CALLERS_OWN
        token = _attention.set(attention)
        self.activate()
        try:
            output = self.model.get_decoder()(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False
            )
        finally:
            _attention.reset(token)
            config._attn_implementation = implementation
        return cast(Tensor, output.last_hidden_state[0])

    def continue_sequence(self, token_ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Hidden state (1, width) after new tokens (1, new), with the model's own cache."""
        self.activate()
        output = self.model.get_decoder()(
            input_ids=token_ids, past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state[:, -1], output.past_key_values

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary) next-token logits, in at least float32."""
        head, config = cast(nn.Module, self.model.get_output_embeddings()), self.config
        self.activate()
        logits = cast(Tensor, head(hidden)).to(self.dtype)
        # Some model families modify the logits of the head: Cohere, Granite, Gemma 2.
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def hidden(self, packed: Pack) -> Tensor:
        """(predictors, width) hidden states of the predictors."""
        return torch.cat([self.row_hidden(row)[row.predictors] for row in packed.rows])
