"""Forward passes of a language model over rows of prefix trees.

If a model's layers cannot share prefixes, each path becomes a row of its own: slower, with the same
results.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stepagent.model.attention_masks import (
    filled_up,
    follows_trees,
    takes_attention,
    tree_masks,
)
from stepagent.model.chosen_attention import Attention, attending_with
from stepagent.model.device import CPU_TOKEN_BUDGET, OutOfMemory
from stepagent.model.last_mlp import last_mlp_at
from stepagent.model.lean_layers import use_lean_layers
from stepagent.model.lora import Adapter
from stepagent.model.masters import Masters, cast_frozen
from stepagent.model.prefix_tree import Pack, PrefixTree, Row, pack
from stepagent.model.products import use_faster_products
from stepagent.model.sharding import copy_weights, is_sharded, shard, whole
from stepagent.model.weights import WeightsError, place

logger = logging.getLogger(__name__)

MIN_TOKEN_BUDGET = 64
"""Half of this would hardly hold a trajectory."""


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
        self.is_sharded = is_sharded(model)
        """Whether each process holds a part of the weights; see `shard`."""
        if not self.is_sharded:
            use_faster_products(model)
            use_lean_layers(model)
        self.model = model
        self.token_budget = token_budget
        self.adapter = adapter
        self.masters: Masters | None = None
        self._is_whole = False
        self.shares_prefixes = follows_trees(model)
        """Whether the paths of a tree share a row; otherwise each has its own."""
        self._checkpointed = [
            module
            for module in model.modules()
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
        ]
        if self.is_half:
            self.masters = Masters(self._kept_whole())

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
        self.masters = Masters(self._kept_whole())
        cast_frozen(self.model)

    def _trained(self) -> list[nn.Parameter]:
        """The model's trained weights, in the precision in which it computes."""
        if self.adapter is None:
            return list(self.model.parameters())
        return self.adapter.parameters()

    def parameters(self) -> list[nn.Parameter]:
        """What training updates, in at least float32; `publish` then passes it on."""
        trained = self._trained()
        return trained if self.masters is None else self.masters.of(trained)

    def _kept_whole(self) -> list[nn.Parameter]:
        """Those of them that every process holds whole."""
        return [parameter for parameter in self._trained() if not isinstance(parameter, DTensor)]

    def publish(self) -> None:
        """Makes the model compute with updated `parameters`."""
        if self.masters is not None:
            self.masters.publish()

    def in_full_precision(self) -> AbstractContextManager[None]:
        """Context in which the model's trained weights are its `parameters`, not copies."""
        return nullcontext() if self.masters is None else self.masters.in_model()

    def copy(self, name: str) -> Self:
        """An independent copy; with LoRA only the adapter is copied, as `name`."""
        if self.adapter is None and self.is_sharded:
            return self._copy_sharded()
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

    def _copy_sharded(self) -> Self:
        """Made anew, since FSDP cannot copy."""
        model = type(self.model)(self.model.config).eval()
        if self._checkpointed:
            model.activation_checkpointing_enable()
        copied = type(self)(model, token_budget=self.token_budget)
        if self.is_half:
            copied.halve_precision()
        copied.shard(self.model.device)
        with self.in_full_precision(), copied.in_full_precision():
            copy_weights(self.model, copied.model)
        return copied

    def shard(self, device: torch.device) -> None:
        """Shards the weights over all processes, in place, and moves the model to a device.

        Passes of `row_hidden` are then made by all processes together; each may sample by itself
        within `whole`. Raises `WeightsError` if the model cannot be sharded.
        """
        name = place(self.model.name_or_path or "model")
        if not self.shares_prefixes:
            # Processes would make different numbers of passes for a pack.
            raise WeightsError(f"{name}: --compute.shard: expected layers that can share prefixes")
        if self.adapter is not None and not self.adapter.shares_model:
            raise WeightsError(f"{name}: --compute.shard: expected plain LoRA, or no adapter")
        dtype = self.model.dtype
        if self.masters is not None:
            self.masters.release()
            self.masters = None
        shard(self.model, device, dtype, () if self.adapter is None else self._trained())
        self.is_sharded = True
        if dtype == torch.bfloat16:
            self.masters = Masters(self._kept_whole())

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block each process computes by itself, even if weights are sharded.

        All processes must enter it together, and need memory for the whole model.
        """
        if not self.is_sharded or self._is_whole:
            yield
            return
        self._is_whole = True
        try:
            with whole(self.model):
                yield
        finally:
            self._is_whole = False

    def halve_budget(self) -> None:
        """Halves the token budget.

        Raises `OutOfMemory` if it is at its minimum, and in passes that other processes make too.
        """
        if self.is_sharded and not self._is_whole:
            raise OutOfMemory(
                f"out of memory with {self.token_budget} tokens at once; a smaller "
                "--compute.token-budget would need less (with --compute.shard it is not halved)"
            )
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
        assert self._is_whole or not self.is_sharded
        self.activate()
        with attending_with(attention, self.config):
            output = self.model.get_decoder()(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False
            )
        return cast(Tensor, output.last_hidden_state[0])

    def continue_sequence(self, token_ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Hidden state (1, width) after new tokens (1, new), with the model's own cache."""
        assert self._is_whole or not self.is_sharded
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
