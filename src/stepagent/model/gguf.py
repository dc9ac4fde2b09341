"""Converts GGUF files, the format of llama.cpp, to Hugging Face model folders.

Quantized weights are written as float32, so that they can be trained. The folder is kept in the
user's cache under a name with the file's hash. A model that is split into parts, such as
`NAME-00001-of-00003.gguf`, is read whole, whichever part is given.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from stepagent.console.printable import printable
from stepagent.files.atomic import TEMPORARY, atomic_folder, file_hash
from stepagent.files.cache import cache_folder
from stepagent.files.lines import Unreadable, open_regular
from stepagent.model.weights import (
    UNREADABLE,
    WeightsError,
    open_model,
    place,
    reason,
    refuse_pointers,
)

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
"""llama.cpp's name of a part of a split model, without the suffix."""


class GGUFError(ValueError):
    """A GGUF file cannot be read; the message is one line."""


def convert(file: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as a new Hugging Face folder.

    Raises `GGUFError` if a part of the model or a weight is missing or unreadable.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _whole(_parts(file), folder.parent) as whole:
        try:
            model = open_model(str(whole.parent), torch.float32, gguf_file=whole.name)
            tokenizer = AutoTokenizer.from_pretrained(str(whole.parent), gguf_file=whole.name)
            _drop_inventions(tokenizer, model.config.vocab_size)
        except WeightsError as error:
            raise GGUFError(str(error).replace(place(whole), place(file))) from None
        except UNREADABLE as error:
            raise GGUFError(
                f"{place(file)}: its tokenizer cannot be read: {reason(error)}"
            ) from None
        # Else transformers takes the weights for quantized ones and refuses to save them.
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        with atomic_folder(folder) as made:
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)


def converted(file: Path) -> Path:
    """The model folder of a GGUF file, converted on first use; raises as `convert` does.

    If several processes convert it at once, the folder of the first to finish is kept.
    """
    parts = _parts(file)
    found = _PART.fullmatch(parts[0].stem)
    name = found["name"] if found and len(parts) > 1 else file.stem
    # Sixteen digits: folders with twelve were written when missing weights went unnoticed.
    digest = hashlib.sha256("".join(map(file_hash, parts)).encode()).hexdigest()[:16]
    folder = cache_folder() / "models" / f"{name}-{digest}"
    if not folder.is_dir():
        try:
            convert(file, folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _parts(file: Path) -> list[Path]:
    """All files of the model that a file belongs to, in order."""
    reader = _reader(file)
    count = _field(reader, "split.count", 1)
    if count <= 1:
        return [file]
    found = _PART.fullmatch(file.stem)
    if not found or int(found["count"]) != count:
        raise GGUFError(
            f"{place(file)}: one of the {count} parts of a model; expected a name that ends in "
            f"-00001-of-{count:05d}.gguf, with all parts in the same folder"
        )
    parts = [
        file.with_name(f"{found['name']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise GGUFError(
            f"{place(file)}: {len(missing)} of the model's {count} parts missing: "
            f"{', '.join(map(printable, missing[:3]))}; expected all in the same folder"
        )
    return parts


@contextmanager
def _whole(parts: list[Path], scratch: Path) -> Iterator[Path]:
    """One file with the tensors of all parts; a temporary one if there are several."""
    readers = [_reader(part) for part in parts]
    _refuse_scaled_frequencies(parts, readers)
    if len(parts) == 1:
        yield parts[0]
        return
    for number, (part, reader) in enumerate(zip(parts, readers, strict=True)):
        if (own := _field(reader, "split.no", -1)) != number:
            raise GGUFError(f"{place(part)}: its header says part {own + 1}; expected {number + 1}")
    total = sum(len(reader.tensors) for reader in readers)
    if (expected := _field(readers[0], "split.tensors.count", total)) != total:
        raise GGUFError(
            f"{place(parts[0])}: its parts have {total} tensors; its header says {expected}"
        )
    prefix, suffix = TEMPORARY.split("*")
    with TemporaryDirectory(dir=scratch, prefix=prefix, suffix=suffix) as folder:
        whole = Path(folder) / parts[0].name
        try:
            _join(readers, whole)
        except UNREADABLE as error:
            raise GGUFError(
                f"{place(parts[0])}: its parts cannot be joined: {reason(error)}"
            ) from None
        yield whole


def _join(readers: list[GGUFReader], whole: Path) -> None:
    architecture = readers[0].fields["general.architecture"].contents()
    writer = GGUFWriter(str(whole), architecture)
    for name, field in readers[0].fields.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for reader in readers:
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _drop_inventions(tokenizer: Any, size: int) -> None:
    """Removes special tokens that transformers adds although the file and model lack them."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["id"] < size]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))


def _refuse_scaled_frequencies(parts: list[Path], readers: list[GGUFReader]) -> None:
    """Raises `GGUFError` for scaled rotary frequencies (Llama 3.1 and later).

    They are stored in a tensor that transformers does not read.
    """
    for part, reader in zip(parts, readers, strict=True):
        for tensor in reader.tensors:
            if tensor.name == "rope_freqs.weight" and not np.all(tensor.data == 1):
                raise GGUFError(
                    f"{place(part)}: scales its rotary frequencies (rope_freqs.weight), which "
                    "transformers does not read from GGUF; expected the model's original folder"
                )


def _field(reader: GGUFReader, name: str, default: int) -> int:
    found: Any = reader.get_field(name)
    return default if found is None else int(found.contents())


def _reader(file: Path) -> GGUFReader:
    try:
        refuse_pointers(file)
    except WeightsError as error:
        raise GGUFError(str(error)) from None
    try:
        with open_regular(file, "expected a GGUF file") as opened:
            start = opened.read(4)
    except Unreadable as error:
        raise GGUFError(f"{place(file)}: {error}") from None
    if start != b"GGUF":
        raise GGUFError(f"{place(file)}: not a GGUF file: it does not begin with the letters GGUF")
    try:
        return GGUFReader(str(file))
    except UNREADABLE as error:
        raise GGUFError(f"{place(file)}: cannot be read as a model: {reason(error)}") from None
