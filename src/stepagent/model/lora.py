"""Adapters by PEFT: several trained versions of one model in memory, such as LoRA (Hu et al. 2021).

New ones are LoRA (arXiv 2106.09685); folders of every kind that changes the layers of a model open.
Policy and discriminator are adapters on the same frozen base. One adapter is active at a time.
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
"""What PEFT adds to the name of a layer that it wraps."""
PREFIX = "base_model.model."
"""What PEFT puts before the names of the weights in its files."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which low-rank updates are trained instead of the whole model."""

    rank: int = 0
    """Rank of the update of each matrix; 0 trains the whole model."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    target_modules: str = "all-linear"
    """Which layers get one: PEFT's name for all linear layers, or a regular expression."""

    def __post_init__(self) -> None:
        """Raises `LoRAError` for a rank that cannot be."""
        if self.rank < 0:
            raise LoRAError(f"--lora.rank must be at least 0, not {self.rank}")


class LoRAError(ValueError):
    """Adapters cannot be made as asked; the message is one line."""


@dataclass(frozen=True)
class Adapter:
    """One named adapter of a model."""

    peft: PeftModel
    name: str
    keeps_embeddings: bool = False
    """Whether its files hold the embeddings as well, since its vocabulary is not its base's."""

    @classmethod
    def add(cls, model: PreTrainedModel, config: LoRAConfig, *, seed: int) -> "Adapter":
        """A new adapter, which changes nothing yet; the model's own weights are frozen."""
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
        """The adapter of a folder, or of an id on the hub, on its base model, ready to be trained.

        Raises `AdapterError` for a kind that does not work through the layers of the model, and
        `WeightsError` if a weight is missing, superfluous or not finite.
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

    def activate(self) -> None:
        """From now on forward passes and gradients go through this adapter."""
        if self.peft.active_adapter != self.name:
            self.peft.set_adapter(self.name)

    def parameters(self) -> list[nn.Parameter]:
        """What training updates, in an order that is the same for every copy."""
        self.activate()
        return [parameter for parameter in self.peft.parameters() if parameter.requires_grad]

    def copy(self, name: str) -> "Adapter":
        """Another adapter that starts equal: on the same model if it is nothing but LoRA.

        Several adapters of the other kinds cannot share a model; the copy is on a copy of it.
        Raises `AdapterError` where that is impossible.
        """
        config = self.peft.peft_config[self.name]
        if not _is_plain_lora(config):
            try:
                return replace(self, peft=deepcopy(self.peft))
            except RuntimeError:  # PyTorch copies no views, as tied adapters are of one another
                raise AdapterError(
                    f"an adapter of kind {kind_of(config)} with ensure_weight_tying cannot be "
                    "copied, so it can have no discriminator"
                ) from None
        copied = replace(self, name=name)
        weights = {key: value.clone() for key, value in self._weights().items()}
        self.peft.add_adapter(name, deepcopy(config))
        copied._ready()._take(weights, name)
        return copied

    def save(self, folder: Path) -> None:
        """Writes an adapter folder of PEFT's; raises `WeightsError` if a weight is not finite."""
        # Clones, since safetensors takes no tensors that share memory.
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
        """Takes over the weights of an adapter folder; raises as `open` does."""
        self._take(read_weights(str(folder)), folder)

    def merged(self) -> PreTrainedModel:
        """The model with the adapter added to its weights; this adapter is used up.

        Raises `AdapterError` if PEFT cannot merge adapters of this kind.
        """
        self.activate()
        config = self.model.config
        was_tied = config.tie_word_embeddings
        _untie(self.peft)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tied embeddings, which are seen to here
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
        """Without dropout, since what was sampled has to be read as it was.

        Trained weights get float32 at least: small updates get lost in bfloat16, in which the
        frozen weights may be.
        """
        self.peft.eval()
        for parameter in self.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        return self

    def _weights(self) -> dict[str, Tensor]:
        """What PEFT keeps in files of this adapter, by the names that it has there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what is asked for
            found: dict[str, Tensor] = get_peft_model_state_dict(
                self.peft, adapter_name=self.name, save_embedding_layers=self.keeps_embeddings
            )
        return found

    def _take(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Puts all weights of a file in their places."""
        with one_line(source):
            try:
                found: Any = set_peft_model_state_dict(self.peft, weights, adapter_name=self.name)
            except KeyError as error:  # of what is trained whole it looks up each part by its name
                raise ValueError(f"has no {error}, which its config asks for") from None
        # PEFT calls much missing that is not: the base, and tensors that two modules share.
        live = {key: value.data_ptr() for key, value in self.peft.state_dict().items()}
        own = {value.data_ptr() for value in self._weights().values() if value.numel()}
        taken = {pointer for key, pointer in live.items() if key not in found.missing_keys}
        missing = [key for key in found.missing_keys if live[key] in own - taken]
        # Where the vocabulary was resized PEFT's files have the embeddings a second time, as the
        # layers of the base that they are in no other place.
        superfluous = [key for key in found.unexpected_keys if not self._is_embeddings(key)]
        check_complete(source, missing, superfluous)
        check_finite(source, self._weights())

    def _is_embeddings(self, key: str) -> bool:
        """Whether a name in a file is that of the embeddings or the head."""
        layers = {self.model.get_input_embeddings(), self.model.get_output_embeddings()}
        names = {name for name, module in self.model.named_modules() if module in layers}
        plain = {PREFIX + _WRAPPED.sub("", name) for name in names}
        return _WRAPPED.sub("", key.removesuffix(".weight")) in plain


def _injected(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """The model with new layers for an adapter; all others are frozen."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return cast(PeftModel, get_peft_model(model, config))


def _resize_vocabulary(model: PreTrainedModel, weights: dict[str, Tensor]) -> bool:
    """Gives the model as many tokens as the adapter's file has embeddings; whether they differ."""
    layers = cast(nn.Embedding, model.get_input_embeddings())
    name = next(n for n, module in model.named_modules() if module is layers)
    own = re.compile(re.escape(f"{PREFIX}{name}.") + r"([\w.]+\.)?weight")
    sizes = {len(value) for key, value in weights.items() if own.fullmatch(key)}
    if sizes <= {len(layers.weight)}:
        return False
    model.resize_token_embeddings(max(sizes), mean_resizing=False)
    return True


def _is_plain_lora(config: PeftConfig) -> bool:
    """Whether an adapter adds to frozen layers and changes nothing else of the model."""
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
    """Gives each module weights of its own: merged into shared ones, an adapter counts twice."""
    seen = set[int]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(module, name, own)
            seen.add(id(parameter))
