"""Adapters (PEFT): several trained versions of one model that share its frozen weights.

New adapters are LoRA (Hu et al. 2021, arXiv 2106.09685); existing ones may be of any kind that acts
inside the model's layers. Policy and discriminator are adapters on the same base. One adapter is
active at a time.
"""

import re
import warnings
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepagent.model.adapter_files import (
    AdapterError,
    kind_of,
    one_line,
    read_config,
    read_weights,
)
from stepagent.model.weights import (
    UNREADABLE,
    check_complete,
    check_finite,
    reason,
)

_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save)(\.\w+)?$")
"""Suffix that PEFT adds to the name of a layer that it wraps."""
PREFIX = "base_model.model."
"""Prefix of the names of weights in PEFT's files."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """LoRA: train a small low-rank adapter instead of the whole model."""

    rank: int = 0
    """Rank of each matrix's update, for example 16; 0 trains the whole model without LoRA."""
    alpha: int = 32
    """Scale of the updates: each is multiplied by alpha / rank."""
    target_modules: str = "all-linear"
    """Layers that are adapted: all-linear, or a regular expression of their names."""

    def __post_init__(self) -> None:
        """Raises `LoRAError` for a negative rank or names that are no regular expression."""
        if self.rank < 0:
            raise LoRAError(f"--lora.rank must be at least 0, not {self.rank}")
        try:
            re.compile(self.target_modules)
        except re.error as error:
            raise LoRAError(
                f"--lora.target-modules {self.target_modules}: not a regular expression ({error})"
            ) from None


class LoRAError(RuntimeError):
    """LoRA cannot be set up with these settings; the message is one line.

    Not a ValueError, which the command-line parser would print in a box of several lines.
    """


@dataclass(frozen=True)
class Adapter:
    """One named adapter of a model."""

    peft: PeftModel
    name: str
    keeps_embeddings: bool = False
    """Whether its files hold the embeddings too, since its vocabulary differs from its base's."""

    @classmethod
    def add(cls, model: PreTrainedModel, config: LoRAConfig, *, seed: int) -> "Adapter":
        """Adds a new LoRA adapter, which changes no output yet, and freezes the model's weights.

        Raises `LoRAError` if no layer matches the settings.
        """
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=config.target_modules,
            task_type="CAUSAL_LM",
        )
        try:
            peft = _injected(model, settings, seed)
        except ValueError as error:
            raise LoRAError(f"LoRA: {reason(error)}") from None
        return cls(peft, "default")._ready()

    @classmethod
    def open(cls, source: str, model: PreTrainedModel) -> "Adapter":
        """Opens an adapter folder or hub id on its base model, ready for training.

        Raises `AdapterError` for a kind that acts outside the model's layers, and `WeightsError`
        if a weight is missing, unexpected or not finite.
        """
        config = read_config(source)
        weights = read_weights(source)
        config.inference_mode = False
        with one_line(source):
            resized = _resize_vocabulary(model, weights)
            adapter = cls(_injected(model, config, seed=0), "default", resized)
        adapter._take(weights, source)
        return adapter._ready()

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, with the adapter in its layers."""
        return cast(PreTrainedModel, self.peft.get_base_model())

    @property
    def shares_model(self) -> bool:
        """Whether copies are on the same model."""
        return _is_plain_lora(self.peft.peft_config[self.name])

    def activate(self) -> None:
        """Makes forward passes and gradients use this adapter from now on."""
        if self.peft.active_adapter != self.name:
            self.peft.set_adapter(self.name)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the same order for every copy; activates the adapter."""
        self.activate()
        return [parameter for parameter in self.peft.parameters() if parameter.requires_grad]

    def copy(self, name: str) -> "Adapter":
        """A copy of the adapter, on the same model for plain LoRA.

        Adapters of other kinds cannot share a model, so the model is copied too. Raises
        `AdapterError` if that is impossible.
        """
        config = self.peft.peft_config[self.name]
        if not self.shares_model:
            try:
                return replace(self, peft=deepcopy(self.peft))
            except RuntimeError:  # PyTorch cannot copy views, which tied adapters are
                raise AdapterError(
                    f"an adapter of kind {kind_of(config)} with ensure_weight_tying cannot be "
                    "copied to make a discriminator"
                ) from None
        copied = replace(self, name=name)
        weights = {key: value.clone() for key, value in self._weights().items()}
        self.peft.add_adapter(name, deepcopy(config))
        copied._ready()._take(weights, name)
        return copied

    def save(self, folder: Path) -> None:
        """Writes a PEFT adapter folder; raises `WeightsError` if a weight is not finite."""
        # Clones, since safetensors refuses tensors that share memory.
        tensors = {
            key: value.detach().cpu().clone().contiguous() for key, value in self._weights().items()
        }
        check_finite(f"{folder}: not saved", tensors)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = deepcopy(self.peft.peft_config[self.name])
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def restore(self, folder: Path) -> None:
        """Loads the weights of an adapter folder in place; raises as `open` does."""
        self._take(read_weights(str(folder)), folder)

    def merged(self) -> PreTrainedModel:
        """The model with the adapter merged into its weights; the adapter is unusable afterwards.

        Raises `AdapterError` if PEFT cannot merge adapters of this kind.
        """
        self.activate()
        config = self.model.config
        was_tied = config.tie_word_embeddings
        _untie(self.peft)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about tied embeddings, which are handled here
                whole = cast(PreTrainedModel, self.peft.merge_and_unload(safe_merge=True))
        except UNREADABLE as error:
            kind = kind_of(self.peft.peft_config[self.name])
            raise AdapterError(
                f"PEFT cannot merge an adapter of kind {kind}: {reason(error)}"
            ) from None
        embeddings = cast(nn.Embedding, whole.get_input_embeddings())
        head = cast(nn.Linear, whole.get_output_embeddings())
        if was_tied and torch.equal(embeddings.weight, head.weight):
            head.weight = embeddings.weight
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = head.weight is embeddings.weight
        return whole

    def _ready(self) -> "Adapter":
        """Disables dropout, so that log-probabilities are those that actions were sampled with.

        Also makes trained weights at least float32: bfloat16 would round small updates away.
        """
        self.peft.eval()
        for parameter in self.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        return self

    def _weights(self) -> dict[str, Tensor]:
        """The weights in PEFT's file of this adapter, by their names there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about saving embeddings, which is intended
            found: dict[str, Tensor] = get_peft_model_state_dict(
                self.peft, adapter_name=self.name, save_embedding_layers=self.keeps_embeddings
            )
        return found

    def _take(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Loads all weights of a file; raises as `open` does."""
        with one_line(source):
            try:
                found: Any = set_peft_model_state_dict(self.peft, weights, adapter_name=self.name)
            except KeyError as error:  # PEFT looks up modules that are trained whole by name
                raise ValueError(f"lacks {error}, which its config requires") from None
        # PEFT also reports as missing the base's weights, and tensors that two modules share.
        live = {key: value.data_ptr() for key, value in self.peft.state_dict().items()}
        own = {value.data_ptr() for value in self._weights().values() if value.numel()}
        taken = {pointer for key, pointer in live.items() if key not in found.missing_keys}
        missing = [key for key in found.missing_keys if live[key] in own - taken]
        # If the vocabulary was resized, PEFT's files hold the embeddings a second time under the
        # base layer's name.
        superfluous = [key for key in found.unexpected_keys if not self._is_embeddings(key)]
        check_complete(source, missing, superfluous)
        check_finite(source, self._weights())

    def _is_embeddings(self, key: str) -> bool:
        """Whether a name in a file belongs to the embeddings or the LM head."""
        layers = {self.model.get_input_embeddings(), self.model.get_output_embeddings()}
        names = {name for name, module in self.model.named_modules() if module in layers}
        plain = {PREFIX + _WRAPPED.sub("", name) for name in names}
        return _WRAPPED.sub("", key.removesuffix(".weight")) in plain


def _injected(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """The model with an adapter's new layers; all others are frozen."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return cast(PeftModel, get_peft_model(model, config))


def _resize_vocabulary(model: PreTrainedModel, weights: dict[str, Tensor]) -> bool:
    """Resizes the vocabulary to the adapter file's embeddings; returns whether that changed it."""
    layers = cast(nn.Embedding, model.get_input_embeddings())
    name = next(n for n, module in model.named_modules() if module is layers)
    own = re.compile(re.escape(f"{PREFIX}{name}.") + r"([\w.]+\.)?weight")
    sizes = {len(value) for key, value in weights.items() if own.fullmatch(key)}
    if sizes <= {len(layers.weight)}:
        return False
    model.resize_token_embeddings(max(sizes), mean_resizing=False)
    return True


def _is_plain_lora(config: PeftConfig) -> bool:
    """Whether an adapter only adds low-rank updates to frozen layers."""
    return (
        isinstance(config, LoraConfig)
        and config.peft_type == PeftType.LORA
        and config.bias == "none"
        and isinstance(config.init_lora_weights, bool)  # others rewrite the frozen weights
        and not (
            config.modules_to_save
            or config.trainable_token_indices
            or config.target_parameters
            or config.layer_replication
            or config.ensure_weight_tying
        )
    )


def _untie(model: nn.Module) -> None:
    """Unshares tied weights, into which an adapter would be merged twice."""
    seen = set[int]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(module, name, own)
            seen.add(id(parameter))
