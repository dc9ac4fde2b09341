"""How commands open policies and tasks: quietly, and with repeatable numbers."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

import torch
import tyro
from transformers.utils import logging as transformers_logging

from stepagent.commands.parsing import UsageError
from stepagent.experiment.config import TASKS, TaskConfig
from stepagent.experiment.manifest import check_policy
from stepagent.model.adapter_files import base_of, is_adapter
from stepagent.model.device import ComputeConfig
from stepagent.model.gguf import converted
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy, open_tokenizer
from stepagent.model.weights import open_config, place
from stepagent.rendering.renderer import Renderer
from stepagent.tasks.base import Task

if TYPE_CHECKING:
    TaskChoice = TaskConfig
else:  # a subcommand for each task, which no type checker could read
    TaskChoice = Annotated[
        Union[  # noqa: UP007
            tuple(
                Annotated[type(config), tyro.conf.subcommand(name, default=config)]
                for name, config in TASKS.items()
            )
        ],
        tyro.conf.arg(name=""),
    ]


def prepare() -> None:
    """No bars of other libraries in the output, and the same numbers every time."""
    transformers_logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)


def local_model(name: str) -> str:
    """A model's folder, a GGUF file's converted folder, or the id of a model on the hub.

    Raises `UsageError` for a folder or file that holds no model.
    """
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return str(converted(path))
    if path.is_dir():
        if not (
            path / "adapter_config.json"
        ).is_file():  # an adapter may leave the rest to its base
            for needed in ("config.json", "tokenizer_config.json"):
                if not (path / needed).is_file():
                    raise UsageError(f"{place(path)}: not a policy, it has no {needed}")
        return str(path.resolve())  # adapters keep it as the place of their base
    if path.suffix == ".gguf" or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or path.exists():
        raise UsageError(
            f"{place(name)}: no such folder; expected a Hugging Face model folder, a GGUF file, or "
            "the id of a model on the hub"
        )
    return name


def load_policy(
    name: str,
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008, it is frozen
    lora: LoRAConfig = LoRAConfig(),  # noqa: B008
    *,
    seed: int = 0,
) -> Policy:
    """The policy of that name; raises `UsageError` if there is none.

    Raises `RunError` if it is the folder of a unit and not as the unit wrote it.
    """
    model = local_model(name)
    check_policy(Path(model))
    return Policy.load(model, compute, lora, seed=seed)


def open_renderer(name: str) -> tuple[Renderer, int]:
    """How a model writes and reads dialogues, and its context in tokens; opens no weights."""
    model = local_model(name)
    base = base_of(model) if is_adapter(model) else model
    context = getattr(open_config(base), "max_position_embeddings", None)
    if context is None:
        raise UsageError(f"{place(name)}: its config states no longest sequence")
    return Renderer(open_tokenizer(model, base)), context


def open_task(config: TaskConfig) -> Task:
    """The task; raises `UsageError` for unknown names."""
    try:
        return config.make_task()
    except ValueError as error:
        raise UsageError(str(error)) from None
