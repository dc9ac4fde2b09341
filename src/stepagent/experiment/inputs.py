"""What a run starts from, as config.json states it: settings, and inputs by their content.

A resumed run must start from the same; models and files may have been moved.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepagent.experiment.config import TrainConfig
from stepagent.experiment.manifest import MANIFEST
from stepagent.experiment.novice import model_name
from stepagent.experiment.run import to_json
from stepagent.experiment.run_json import read_json
from stepagent.files.atomic import file_hash
from stepagent.model.adapter_files import AdapterError, base_of
from stepagent.tasks.base import Task

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


def run_settings(
    recipe: str, config: TrainConfig, task: Task | None, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """The settings of a whole run; a model is named without its path."""
    own = to_json(config)
    if own["task"] is not None:
        # How long an engine is waited for changes no number, and may change when a run is resumed.
        own["task"].pop("engine", None)
    if isinstance(config.model, str):
        own["model"] = model_name(config.model)
    return {
        "recipe": recipe,
        "seed": config.seed,
        "protocol": to_json(task.facts()) if task else {},
        "config": own,
        "inputs": dict(inputs),
    }
