"""A policy: a causal language model with its renderer, read through the prefix tree."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stepagent.backends.forward import decoder, head_logits, pack_hidden
from stepagent.prefix_tree import Pack
from stepagent.renderer import RenderedTrajectory, Renderer
from stepagent.types import Trajectory


@dataclass(frozen=True)
class Reading:
    """What a policy says about the paths of a pack."""

    logprobs: Tensor
    """(targets,) log-probability of each path token given what is before it, in nats."""
    entropies: Tensor
    """(targets,) entropy, in nats, of the distribution that each path token was drawn from."""
    state_hidden: Tensor
    """(paths, width) hidden state at the last token before each path."""


class Policy:
    """A language model that acts."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer) -> None:
        """Takes a model and the renderer of its own tokenizer."""
        self.model = model
        self.renderer = renderer

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Opens a Hugging Face model folder (weights, config, tokenizer with chat template).

        Raises ValueError if a layer has anything but full attention, `TemplateError` if the chat
        template does not let dialogues grow by appending.
        """
        name = os.fspath(folder)
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if getattr(config, "sliding_window", None) is not None:
            kinds.add("sliding_attention")
        if unfit := sorted(kinds - {"full_attention"}):
            raise ValueError(
                f"{name}: has layers of kind {', '.join(unfit)}; expected full attention only, "
                "since other layers cannot follow the mask of a tree"
            )
        return cls(cast(PreTrainedModel, model.eval()), Renderer(tokenizer))

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face model folder."""
        self.model.save_pretrained(folder)
        self.renderer.tokenizer.save_pretrained(folder)

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """The trajectory as token ids; raises ValueError if it is longer than the context."""
        rendered = self.renderer.render(trajectory)
        if rendered.num_tokens > self.context:
            raise ValueError(
                f"{trajectory.id}: has {rendered.num_tokens} tokens, the model's context is "
                f"{self.context}"
            )
        return rendered

    def read(self, pack: Pack) -> Reading:
        """Log-probabilities of all paths of a pack, one forward pass for each row."""
        hidden, at_predictors = pack_hidden(decoder(self.model), pack)
        logprobs = torch.log_softmax(head_logits(self.model, at_predictors), dim=-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        return Reading(
            logprobs=logprobs[pack.target_predictor, pack.target_ids],
            entropies=entropies[pack.target_predictor],
            state_hidden=hidden[pack.path_state],
        )

    def path_logprobs(self, pack: Pack) -> Tensor:
        """(paths,) log-probability of each whole path, in nats."""
        return pack.sum_by_path(self.read(pack).logprobs)

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return cast(int, self.model.config.get_text_config().hidden_size)

    @property
    def context(self) -> int:
        """Longest sequence that the model can see, in tokens."""
        return cast(int, self.model.config.get_text_config().max_position_embeddings)

    @property
    def layers(self) -> nn.Module:
        """The model below its output head."""
        return decoder(self.model)
