"""Opens a model's weights strictly: none may be missing, unexpected or not finite.

Libraries initialize missing weights at random and at most log a warning. Here a model opens with
all of its weights or not at all.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from stepagent.console.printable import printable

UNREADABLE = (
    OSError, SafetensorError, ImportError, UnpicklingError, StrictDataclassError,
    ValueError, RuntimeError, LookupError, TypeError, AttributeError, EOFError,
    ArithmeticError, AssertionError, MemoryError,
)  # fmt: skip
"""Errors that transformers, PEFT and their file readers raise for unusable files."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_SIZE = 1024
"""Most bytes of a Git LFS pointer file."""
_MOST = {"num_hidden_layers": 10_000, "hidden_size": 10**6, "max_position_embeddings": 10**12}
"""Limits far beyond any model: larger ones would take hours to build before memory runs out."""
_NAMED = 3
"""Tensors that a message names; the others are counted."""


class WeightsError(ValueError):
    """Weights are missing, unexpected, of a wrong shape or not finite; the message is one line."""


def open_config(source: str) -> PretrainedConfig:
    """The language model's config, of a folder or hub id.

    Raises `WeightsError` if it cannot be read or has an absurd size, and as `refuse_pointers` does.
    """
    refuse_pointers(source)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source, local_files_only=Path(source).is_dir(), trust_remote_code=False
        ).get_text_config()
        for name, most in _MOST.items():
            number = getattr(config, name, None)
            if number is not None and not 1 <= number <= most:
                raise ValueError(f"{name} is {number}; expected 1 to {most}")
    except UNREADABLE as error:
        raise WeightsError(f"{place(source)}: cannot open the model: {reason(error)}") from None
    return config


def open_model(source: str, dtype: torch.dtype, *, gguf_file: str | None = None) -> PreTrainedModel:
    """Opens a causal language model with all its weights, by folder or hub id.

    With `gguf_file`, opens that file in the folder. Raises `WeightsError` if the model cannot be
    opened, or if a weight is missing, unexpected, of a wrong shape or not finite.
    """
    where = Path(source) / gguf_file if gguf_file else source
    if gguf_file:
        refuse_pointers(where)
    else:
        open_config(source)
    verbosity = transformers_logging.get_verbosity()
    # Its table of missing weights takes several lines; the checks below report them in one.
    transformers_logging.set_verbosity_error()
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            local_files_only=Path(source).is_dir(),
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to name them below
            gguf_file=gguf_file,
        )
    except UNREADABLE as error:
        raise WeightsError(f"{place(where)}: cannot open the model: {reason(error)}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model: PreTrainedModel = opened[0]
    found: dict[str, Any] = opened[1]
    tied = model.all_tied_weights_keys
    missing = [n for n in found["missing_keys"] if tied.get(n) not in found["missing_keys"]]
    parts = {name for name, _ in model.named_children()}
    superfluous = [n for n in found["unexpected_keys"] if n.split(".")[0] in parts]
    check_complete(where, missing, superfluous)
    if shapes := sorted(found["mismatched_keys"]):
        name, given, expected = shapes[0]
        raise WeightsError(
            f"{place(where)}: {counted(shapes)} of a different shape than its config says: "
            f"{printable(name, 120)} is {tuple(given)}, expected {tuple(expected)}"
        )
    state = model.state_dict()
    whole_numbers = [
        name
        for name, dtype in stored_dtypes(source).items()
        if dtype is None and name in state and state[name].is_floating_point()
    ]
    if whole_numbers:
        raise WeightsError(
            f"{place(where)}: {counted(whole_numbers)} quantized, but its config does not say how: "
            f"{named(whole_numbers)}; expected floating-point weights"
        )
    check_finite(where, state)
    model.eval()
    return model


_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def stored_dtypes(source: str) -> dict[str, torch.dtype | None]:
    """The dtype of each tensor in a folder's safetensors; None if it is not a floating-point one.

    Empty for a hub id.
    """
    found: dict[str, torch.dtype | None] = {}
    for file in sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else ():
        # Git LFS pointers may lie next to the files that were opened.
        with suppress(SafetensorError), safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- not a dictionary
                found[name] = _FLOATS.get(opened.get_slice(name).get_dtype())
    return found


def check_complete(source: str | Path, missing: Iterable[str], superfluous: Iterable[str]) -> None:
    """Raises `WeightsError` if tensors are missing or unexpected, and names them."""
    missing, superfluous = sorted(missing), sorted(superfluous)
    if missing:
        raise WeightsError(
            f"{place(source)}: {counted(missing)} missing: {named(missing)}; expected a complete "
            "model; check that none of its files is missing"
        )
    if superfluous:
        raise WeightsError(
            f"{place(source)}: {counted(superfluous)} unexpected: {named(superfluous)}; the model "
            "that its config describes does not have them"
        )


def check_finite(source: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises `WeightsError` if tensors contain NaN or infinity, and names them."""
    alone = {tensor.data_ptr(): name for name, tensor in reversed(list(tensors.items()))}
    bad = [
        name
        for name in reversed(list(alone.values()))
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all()
    ]
    if bad:
        raise WeightsError(
            f"{place(source)}: {counted(bad)} not finite (NaN or infinity): {named(bad)}"
        )


def load_into(source: str | Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads weights in place; raises `WeightsError` if they do not match the module."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        found = " ".join(str(error).split())
        raise WeightsError(
            f"{place(source)}: its weights do not match this model: {printable(found, 300)}"
        ) from None


def refuse_pointers(source: str | Path) -> None:
    """Raises `WeightsError` if a file, or one that a model folder needs, is a Git LFS pointer.

    Also if it is not a regular file, since reading a pipe may block for ever.
    """
    path = Path(source)
    for file in _needed(path) if path.is_dir() else [path]:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise WeightsError(f"{place(file)}: is a pipe or a device; expected a regular file")
        if file.is_file() and file.stat().st_size <= _POINTER_SIZE:
            with open(file, "rb") as opened:
                if opened.read(len(_POINTER)) == _POINTER:
                    raise WeightsError(
                        f"{place(file)}: is a Git LFS pointer, not the file itself; run `git lfs "
                        "pull` in its repository"
                    )


def _needed(folder: Path) -> list[Path]:
    """The files that opening a model reads; others may stay Git LFS pointers."""
    files = sorted(folder.iterdir())
    weights = [f for f in files if re.fullmatch(r"(adapter_)?model.*\.safetensors", f.name)]
    weights = weights or [f for f in files if f.suffix == ".bin"]
    return weights + [f for f in files if f.suffix in (".json", ".model", ".txt", ".jinja")]


def reason(error: BaseException) -> str:
    """The first line of another library's error, printable; its type if it has no message.

    If that line ends in a colon, the next one is added.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()]
    count = 2 if lines and lines[0].endswith(":") else 1
    return printable(" ".join(lines[:count]), 300) if lines else type(error).__name__


def place(source: str | Path) -> str:
    """The path or hub id of a file, folder or model, printable."""
    return printable(str(source), 4096)


def counted(tensors: list[Any]) -> str:
    """The number of tensors with its verb: `1 tensor is`, `2 tensors are`."""
    return "1 tensor is" if len(tensors) == 1 else f"{len(tensors)} tensors are"


def named(tensors: list[str]) -> str:
    """The first few tensor names, and how many more there are."""
    rest = len(tensors) - _NAMED
    shown = ", ".join(printable(name, 120) for name in tensors[:_NAMED])
    return shown + (f" and {rest} more" if rest > 0 else "")
