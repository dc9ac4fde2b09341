"""Identifies a run's input models by content, so that they may be moved before it is resumed."""

import hashlib
import json
from pathlib import Path

from stepagent.experiment.manifest import MANIFEST
from stepagent.experiment.run_json import read_json
from stepagent.files.atomic import file_hash
from stepagent.model.adapter_files import AdapterError, base_of

TEXT = (".md", ".txt")
"""Suffixes of files that do not change the model, unless they are its vocabulary."""

VOCABULARY = ("merges.txt", "vocab.txt")


def files_of(model: str | Path) -> list[Path]:
    """The folders that a model is read from: its own and, for an adapter, that of its base."""
    folder = Path(model)
    if not (folder / "adapter_config.json").is_file():
        return [folder]
    try:
        return [folder, Path(base_of(str(folder)))]
    except AdapterError:
        return [folder]  # the error is reported when the model is opened


def model_input(model: str) -> str:
    """SHA-256 of a model folder (for an adapter including its base), or the id of a hub model."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    hashes = {
        path.name: file_hash(path)
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and (path.suffix not in TEXT or path.name in VOCABULARY)
    }
    hashes.pop(MANIFEST, None)
    if "adapter_config.json" in hashes:
        config = read_json(folder / "adapter_config.json")
        base = str(config.pop("base_model_name_or_path", ""))
        hashes["adapter_config.json"] = json.dumps(config, sort_keys=True)
        hashes["base"] = model_input(base)
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
