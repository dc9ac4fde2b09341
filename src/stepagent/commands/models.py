"""How commands open policies and tasks: local folders only, quietly, with repeatable numbers."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from stepagent.commands.parsing import UsageError
from stepagent.pipeline import TaskConfig, make_task
from stepagent.policy import Policy
from stepagent.tasks.scienceworld import ScienceWorld


def prepare() -> None:
    """No bars of other libraries in the output, and the same numbers every time."""
    transformers_logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)


def check_policy_folder(folder: Path) -> None:
    """Raises `UsageError` if the folder holds no model."""
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: no such folder; expected a policy (a Hugging Face model folder)"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise UsageError(f"{folder}: not a policy, it has no {name}")


def load_policy(folder: Path) -> Policy:
    """The policy of a folder; raises `UsageError` if there is none."""
    check_policy_folder(folder)
    try:
        return Policy.load(folder)
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder}: not a usable policy: {reason}") from None


def open_task(config: TaskConfig) -> ScienceWorld:
    """The task; raises `UsageError` for unknown names."""
    try:
        return make_task(config)
    except ValueError as error:
        raise UsageError(str(error)) from None
