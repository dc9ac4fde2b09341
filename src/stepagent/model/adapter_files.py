"""Reads PEFT adapter folders: their kind, their base model and their weights."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from peft import PeftConfig, PeftType, load_peft_weights
from torch import Tensor
from transformers.utils.peft_utils import find_adapter_config_file

from stepagent.console.printable import printable
from stepagent.model.weights import UNREADABLE, place, reason, refuse_pointers

logger = logging.getLogger(__name__)

_BESIDE_THE_LAYERS = (
    PeftType.ADAPTION_PROMPT, PeftType.POLY, PeftType.SHADOW, PeftType.XLORA,
)  # fmt: skip
"""Kinds that act outside the layers' forward passes or change how they attend."""


class AdapterError(ValueError):
    """An adapter cannot be opened or merged; the message is one line."""


def is_adapter(source: str) -> bool:
    """Whether a folder or a hub id is an adapter."""
    with one_line(source):
        found = find_adapter_config_file(source)
    return found is not None


def base_of(source: str) -> str:
    """The base model of an adapter: a folder or a hub id.

    A relative path is tried in the adapter's folder first. A folder that has moved is looked up by
    name next to the adapter. Raises `AdapterError` if the base is not found.
    """
    name = read_config(source).base_model_name_or_path
    if not name:
        raise AdapterError(f"{place(source)}: its adapter_config.json names no base model")
    folder = Path(source)
    for path in (folder / name, Path(name), folder.resolve().parent / Path(name).name):
        if (path / "adapter_config.json").is_file():
            raise AdapterError(
                f"{place(source)}: its base {place(path)} is an adapter too; expected a whole "
                "model, as stepagent export-model --merged writes"
            )
        if (path / "config.json").is_file():
            if not Path(name).is_absolute() or path != Path(name):
                logger.info(
                    "%s: its base %s is read from %s", place(source), place(name), place(path)
                )
            return str(path.resolve())
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        return str(name)
    raise AdapterError(
        f"{place(source)}: its base model {place(name)} does not exist; put it there or next to "
        "the adapter, or set its path as base_model_name_or_path in adapter_config.json"
    )


def read_config(source: str) -> PeftConfig:
    """The config of an adapter folder or hub id; refuses kinds that do not work on prefix trees."""
    refuse_pointers(source)
    with one_line(source):
        try:
            config = cast(PeftConfig, PeftConfig.from_pretrained(source))
        except KeyError as error:
            raise ValueError(f"PEFT knows no adapters of kind {error}") from None
    if (
        config.is_prompt_learning
        or config.peft_type in _BESIDE_THE_LAYERS
        or getattr(config, "alora_invocation_tokens", None)
    ):
        raise AdapterError(
            f"{place(source)}: unsupported adapter kind {kind_of(config)}: it acts outside the "
            "model's layers; expected LoRA or another kind inside them"
        )
    return config


def kind_of(config: PeftConfig) -> str:
    """PEFT's name for an adapter's kind, printable."""
    return printable(str(getattr(config.peft_type, "value", config.peft_type)))


def read_weights(source: str) -> dict[str, Tensor]:
    """The tensors in an adapter's file."""
    refuse_pointers(source)
    with one_line(source):
        weights = load_peft_weights(source, "cpu")
    return cast(dict[str, Tensor], weights)


@contextmanager
def one_line(source: str | Path) -> Iterator[None]:
    """Turns errors of PEFT into an `AdapterError` of one line that names the folder."""
    try:
        yield
    except UNREADABLE as error:
        raise AdapterError(f"{place(source)}: cannot be opened: {reason(error)}") from None
