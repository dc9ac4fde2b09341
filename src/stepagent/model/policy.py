"""A policy: a causal language model with its renderer; evaluates paths of prefix trees."""

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stepagent.console.printable import printable
from stepagent.model.adapter_files import base_of, is_adapter
from stepagent.model.attention_masks import layer_kinds
from stepagent.model.device import CPU_TOKEN_BUDGET, MIN_HALF_WIDTH, ComputeConfig
from stepagent.model.forward import Layers
from stepagent.model.lora import Adapter, LoRAConfig
from stepagent.model.opening import (
    MOST_CHANGE,
    SAMPLE,
    PolicyError,
    check_reading,
    halve_and_compare,
    trained_tokens,
)
from stepagent.model.prefix_tree import Pack
from stepagent.model.products import onednn_gain, uses_onednn
from stepagent.model.reading import Reading, read, read_with_entropies
from stepagent.model.sampler import Sampler
from stepagent.model.sharding import as_sharded, gathered_state
from stepagent.model.tree_attention import TREE_ATTENTION
from stepagent.model.weights import (
    UNREADABLE,
    check_finite,
    load_into,
    open_model,
    place,
    reason,
)
from stepagent.processes import ranks
from stepagent.rendering.chat_template import TemplateError
from stepagent.rendering.renderer import RenderedTrajectory, Renderer
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


class Policy:
    """A language model that acts: evaluates, trains and saves it; `Policy.load` opens one."""

    def __init__(self, layers: Layers, renderer: Renderer) -> None:
        """Combines the layers of a causal language model with the renderer of its tokenizer."""
        self.model = layers.model
        self.layers = layers
        self.renderer = renderer
        self.sampler: Sampler | None = None
        """What samples its actions instead of this process, if anything does."""

    @classmethod
    def load(
        cls,
        name: str | Path,
        compute: ComputeConfig = ComputeConfig(),  # noqa: B008, it is frozen
        lora: LoRAConfig = LoRAConfig(),  # noqa: B008
        *,
        seed: int = 0,
    ) -> Self:
        """Opens a Hugging Face model: a model folder, an adapter folder, or a hub id.

        With `lora`, the model is frozen and gets a new adapter, initialized with `seed`, unless it
        is an adapter already. Raises `TemplateError` if the chat template is unsupported,
        `WeightsError` or `AdapterError` if weights are missing or unreadable, and `PolicyError` if
        the model's logits are not decoder + LM head, or if tokens have no embeddings.
        """
        source = str(name)
        adapted = is_adapter(source)
        base = base_of(source) if adapted else source
        device, has_frozen = compute.torch_device, adapted or lora.rank > 0
        # On a CPU `auto` compares both precisions.
        on_gpu = compute.precision == "auto" and device.type == "cuda"
        at_once = has_frozen and (on_gpu or compute.precision == "bfloat16")
        model = open_model(base, torch.bfloat16 if at_once else torch.float32)
        is_shared = compute.shard and ranks.count() > 1
        # The whole model may not fit into a GPU: it is checked on the CPU, then sharded.
        first = torch.device("cpu") if is_shared else device
        if first == device:
            choose_kernel(model, device)
        adapter = None
        if adapted:
            adapter = Adapter.open(source, model)
        elif lora.rank:
            adapter = Adapter.add(model, lora, seed=seed)
        tokenizer = open_tokenizer(source, base)
        rows = len(cast(nn.Embedding, model.get_input_embeddings()).weight)
        ids = max(tokenizer.get_vocab().values())
        if ids >= rows:
            raise PolicyError(
                f"{place(source)}: its tokenizer has {ids + 1} tokens, but its model embeddings "
                f"for only {rows}; expected the model's own tokenizer"
            )
        if compute.gradient_checkpointing:
            model.activation_checkpointing_enable()
        layers = Layers(
            cast(PreTrainedModel, model.to(first)),  # type: ignore[arg-type]
            token_budget=compute.token_budget or CPU_TOKEN_BUDGET,
            adapter=adapter,
        )
        check_reading(layers)
        precision = compute.chosen(layers.width)
        if precision.is_half and not layers.is_half:
            change = halve_and_compare(layers, tokenizer)
            if compute.precision == "auto" and change > MOST_CHANGE:
                logger.info(
                    "%s: float32, since bfloat16 changes log-probabilities by %.2f nats per token; "
                    "expected at most %g", source, change, MOST_CHANGE,
                )  # fmt: skip
                return cls.load(name, replace(compute, precision="float32"), lora, seed=seed)
        if compute.precision == "auto" and layers.width >= MIN_HALF_WIDTH:
            logger.info("%s: %s", source, precision)
            if device.type == "cpu" and not precision.is_half and uses_onednn():
                gain = onednn_gain()
                logger.info(
                    "%s: products by oneDNN, %.1f times as fast as MKL's here", source, gain
                )
        if is_shared:
            layers.shard(device)
            if first != device:
                choose_kernel(model, device)
        policy = cls(layers, Renderer(tokenizer))
        if not layers.shares_prefixes:
            kinds = ", ".join(sorted(layer_kinds(layers.config)))
            logger.info("%s: %s layers cannot share prefixes: slower, same results", source, kinds)
        if not policy.renderer.is_stable:
            logger.info(
                "%s: its chat template rewrites earlier turns, so states share fewer tokens", source
            )
        if compute.token_budget is None and device.type == "cuda":
            layers.token_budget = trained_tokens(layers)
            logger.info("%s: %d tokens per forward pass", source, layers.token_budget)
        return policy

    def copy(self, name: str) -> Self:
        """A copy of the policy; of an adapter only the adapter is copied, under `name`."""
        copied = type(self)(self.layers.copy(name), self.renderer)
        copied.sampler = self.sampler
        return copied

    def ready_sampler(self) -> Sampler | None:
        """Its sampler, with the current weights; None if actions are sampled in this process.

        All processes must call this before their actions. Raises what `Sampler.hand_over` raises.
        """
        if self.sampler is not None:
            opening = self.renderer.opening("Count the cups.", SAMPLE)
            state = [*opening, *self.renderer.ask]
            self.sampler.hand_over(self.layers, state, self.renderer.end_id)
        return self.sampler

    def acting(self) -> AbstractContextManager[None]:
        """Context in which each process acts by itself; all processes enter it together."""
        return self.layers.whole() if self.sampler is None else nullcontext()

    def save(self, folder: str | Path) -> None:
        """Writes a Hugging Face model folder, or an adapter folder if the policy has an adapter.

        Of several processes only the first writes; all must call this if weights are sharded.
        Raises `WeightsError` and writes nothing if a weight is not finite.
        """
        adapter = self.layers.adapter
        with self.layers.in_full_precision():
            state = gathered_state(self.model) if adapter is None else {}
            if not ranks.is_first():
                return
            if adapter is not None:
                adapter.save(Path(folder))
            else:
                check_finite(f"{folder}: not saved", state)
                self.model.save_pretrained(folder, state_dict=state)
        self.renderer.tokenizer.save_pretrained(folder)

    def restore(self, folder: str | Path) -> None:
        """Loads weights that `save` wrote, in place; raises as `load` does."""
        with self.layers.in_full_precision():
            if self.layers.adapter is not None:
                self.layers.adapter.restore(Path(folder))
            else:
                saved = open_model(str(folder), torch.float32)
                load_into(folder, self.model, as_sharded(self.model, saved.state_dict()))

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """Renders a trajectory as token ids.

        Raises `PolicyError` if it is longer than the context, and `TemplateError` if the chat
        template or the tokenizer would lose a part of it.
        """
        rendered = self.renderer.render(trajectory)
        if rendered.num_tokens > self.context:
            raise PolicyError(
                f"{printable(trajectory.id)}: has {rendered.num_tokens} tokens, the model's "
                f"context is {self.context}"
            )
        return rendered

    def render_fitting(
        self, trajectories: Iterable[Trajectory]
    ) -> tuple[list[RenderedTrajectory], list[str]]:
        """Renders the trajectories that can be used; also returns why each other one is left out.

        Histories are never truncated, so that the agent trains on the states in which it later
        acts. Raises `PolicyError` if no trajectory can be used.
        """
        fitting, left_out = list[RenderedTrajectory](), list[str]()
        for trajectory in trajectories:
            try:
                fitting.append(self.render(trajectory))
            except (PolicyError, TemplateError) as error:
                left_out.append(str(error))
        if not fitting and left_out:
            raise PolicyError(f"none of {len(left_out)} trajectories fits: {left_out[0]}")
        return fitting, left_out

    def read(self, pack: Pack) -> Reading:
        """Evaluates all paths of a pack, with one forward pass for each row."""
        return read(self.layers, pack)

    def read_with_entropies(self, pack: Pack) -> tuple[Reading, Tensor]:
        """As `read`, and the entropy (targets,) of the distribution of each path token, in nats."""
        return read_with_entropies(self.layers, pack)

    def path_logprobs(self, pack: Pack) -> Tensor:
        """(paths,) log-probability of each whole path, in nats."""
        return pack.sum_by_path(self.read(pack).logprobs)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters: those of the adapter if there is one, else the whole model's."""
        return self.layers.parameters()

    @property
    def context(self) -> int:
        """Longest sequence that the model can read, in tokens."""
        return cast(int, self.layers.config.max_position_embeddings)


def choose_kernel(model: PreTrainedModel, device: torch.device) -> None:
    """Makes a model attend by the kernel that is best for trees on a device."""
    if device.type == "cuda" and model._supports_flex_attn:
        model.set_attn_implementation("flex_attention")
    elif device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(TREE_ATTENTION)


def open_tokenizer(source: str, base: str) -> PreTrainedTokenizerBase:
    """Opens the tokenizer of a model, or of its base if an adapter has none.

    Raises `PolicyError` if it cannot be opened.
    """
    own = Path(source)
    if source != base and own.is_dir() and not (own / "tokenizer_config.json").is_file():
        source = base
    try:
        return AutoTokenizer.from_pretrained(
            source, local_files_only=Path(source).is_dir(), trust_remote_code=False
        )
    except UNREADABLE as error:
        raise PolicyError(
            f"{place(source)}: its tokenizer cannot be opened: {reason(error)}"
        ) from None
