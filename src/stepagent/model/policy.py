"""A policy: a causal language model with its renderer; evaluates paths of prefix trees."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stepagent.console.printable import printable
from stepagent.model.adapter_files import base_of, is_adapter
from stepagent.model.attention_masks import layer_kinds
from stepagent.model.device import CPU_TOKEN_BUDGET, ComputeConfig, fitting_tokens
from stepagent.model.forward import Layers
from stepagent.model.lora import Adapter, LoRAConfig
from stepagent.model.prefix_tree import ROOT, Pack, PrefixTree
from stepagent.model.reading import Reading, read, read_with_entropies
from stepagent.model.weights import (
    UNREADABLE,
    check_finite,
    load_into,
    open_model,
    place,
    reason,
)
from stepagent.rendering.chat_template import TemplateError
from stepagent.rendering.renderer import RenderedTrajectory, Renderer
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


class PolicyError(ValueError):
    """A policy cannot be used, or not for this trajectory; the message is one line."""


class Policy:
    """A language model that acts: evaluates, trains and saves it; `Policy.load` opens one."""

    def __init__(self, layers: Layers, renderer: Renderer) -> None:
        """Combines the layers of a causal language model with the renderer of its tokenizer."""
        self.model = layers.model
        self.layers = layers
        self.renderer = renderer

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
        has_frozen = adapted or lora.rank > 0
        model = open_model(
            base, torch.bfloat16 if has_frozen and compute.is_half else torch.float32
        )
        device, kernel = compute.torch_device, model.config._attn_implementation
        if device.type == "cuda" and model._supports_flex_attn:
            model.set_attn_implementation("flex_attention")
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
            cast(PreTrainedModel, model.to(device)),  # type: ignore[arg-type]
            token_budget=compute.token_budget or CPU_TOKEN_BUDGET,
            is_half=compute.is_half,
            adapter=adapter,
            decoding_kernel=kernel,
        )
        policy = cls(layers, Renderer(tokenizer))
        policy._check_reading()
        if not layers.shares_prefixes:
            kinds = ", ".join(sorted(layer_kinds(layers.config)))
            logger.info("%s: %s layers cannot share prefixes: slower, same results", source, kinds)
        if not policy.renderer.is_stable:
            logger.info(
                "%s: its chat template rewrites earlier turns, so states share fewer tokens", source
            )
        if compute.token_budget is None and device.type == "cuda":
            layers.token_budget = policy._fitting_tokens()
            logger.info("%s: %d tokens per forward pass", source, layers.token_budget)
        return policy

    @torch.no_grad()
    def _check_reading(self) -> None:
        """Compares log-probabilities of a small tree with plain calls of the model.

        If the tree's differ, each path gets its own row from then on. Raises `PolicyError` if
        single paths differ too: then the model is more than decoder + LM head.
        """
        if getattr(self.layers.config, "max_position_embeddings", None) is None:
            raise PolicyError(f"{self._place}: its config lacks max_position_embeddings")
        adapter = self.layers.adapter
        whole = self.model if adapter is None else adapter.peft
        root, left, right = list(range(1, 6)), [6, 7, 8], [9, 10, 11]
        expected = []
        for branch in (left, right):
            ids = torch.tensor([[*root, *branch]], device=self.model.device)
            with self.layers.reading():
                logits = whole(input_ids=ids).logits[0, len(root) - 1 : -1]
            chosen = torch.log_softmax(logits.to(self.layers.dtype), -1)
            expected.append(chosen.gather(1, ids[0, len(root) :, None])[:, 0])
        tree = PrefixTree()
        state = tree.add(ROOT, root)[-1]
        for branch in (left, right):
            tree.add_path(state, branch)

        tolerance = 0.5 if self.layers.is_half else 0.05  # for rounding, in nats

        def reads_alike() -> bool:
            (packed,) = self.layers.packs([tree])
            return torch.allclose(self.read(packed).logprobs, torch.cat(expected), atol=tolerance)

        if reads_alike():
            return
        self.layers.shares_prefixes = False
        if not reads_alike():
            raise PolicyError(
                f"{self._place}: unsupported model: its logits differ from decoder + LM head"
            )

    def _fitting_tokens(self) -> int:
        """Extrapolates from two trial passes how many training tokens fit into the GPU's memory."""
        peaks = []
        for tokens in (512, 1024):
            tree = PrefixTree()
            tree.add_path(tree.add(ROOT, [0])[-1], [i % 100 for i in range(1, tokens)])
            torch.cuda.reset_peak_memory_stats()
            (packed,) = self.layers.packs([tree])
            self.read_with_entropies(packed)[0].logprobs.sum().backward()  # type: ignore[no-untyped-call]
            peaks.append(torch.cuda.max_memory_allocated())
        parameters = self.layers.parameters()
        for parameter in parameters:
            parameter.grad = None
        torch.cuda.empty_cache()
        reserved = 12 * sum(p.numel() for p in parameters)  # gradient and AdamW's two moments
        return fitting_tokens(torch.cuda.mem_get_info()[0], reserved, (peaks[1] - peaks[0]) / 512)

    def copy(self, name: str) -> Self:
        """A copy of the policy; of an adapter only the adapter is copied, under `name`."""
        return type(self)(self.layers.copy(name), self.renderer)

    def save(self, folder: str | Path) -> None:
        """Writes a Hugging Face model folder, or an adapter folder if the policy has an adapter.

        Raises `WeightsError` and writes nothing if a weight is not finite.
        """
        if self.layers.adapter is not None:
            self.layers.adapter.save(Path(folder))
        else:
            check_finite(f"{folder}: not saved", self.model.state_dict())
            self.model.save_pretrained(folder)
        self.renderer.tokenizer.save_pretrained(folder)

    def restore(self, folder: str | Path) -> None:
        """Loads weights that `save` wrote, in place; raises as `load` does."""
        if self.layers.adapter is not None:
            self.layers.adapter.restore(Path(folder))
        else:
            saved = open_model(str(folder), torch.float32)
            load_into(folder, self.model, saved.state_dict())

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

    @property
    def _place(self) -> str:
        return place(self.model.name_or_path or "model")

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters: those of the adapter if there is one, else the whole model's."""
        return self.layers.parameters()

    @property
    def context(self) -> int:
        """Longest sequence that the model can read, in tokens."""
        return cast(int, self.layers.config.max_position_embeddings)


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
