"""Opening of policies, tokenizers and tasks by commands, with deterministic numbers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

import tyro
from transformers.utils import logging as transformers_logging

from stepagent.chat.inference.server import server_at
from stepagent.commands.parsing import UsageError
from stepagent.experiment.config import TASKS, TaskConfig
from stepagent.experiment.manifest import check_policy
from stepagent.model.adapter_files import base_of, is_adapter
from stepagent.model.device import ComputeConfig, deterministic
from stepagent.model.gguf import converted
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy, open_tokenizer
from stepagent.model.weights import open_config, place
from stepagent.rendering.renderer import Renderer
from stepagent.scratch.small_model import TinyConfig, texts_of, train_tokenizer
from stepagent.tasks.base import Task
from stepagent.types import Trajectory

if TYPE_CHECKING:
    TaskChoice = TaskConfig
else:  # a subcommand for each task, built at run time, which type checkers cannot follow
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
    """Silences progress bars of other libraries, and makes PyTorch deterministic."""
    transformers_logging.disable_progress_bar()
    deterministic()


def local_model(name: str) -> str:
    """The folder of a model, converted first if it is a GGUF file, or the id of a hub model.

    Raises `UsageError` if a folder or file holds no model.
    """
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return str(converted(path))
    if path.is_dir():
        is_adapter_folder = (path / "adapter_config.json").is_file()
        # An adapter may leave these files to its base.
        for needed in () if is_adapter_folder else ("config.json", "tokenizer_config.json"):
            if not (path / needed).is_file():
                raise UsageError(f"{place(path)}: not a model folder: it has no {needed}")
        return str(path.resolve())  # absolute, since adapters store the path of their base
    if path.suffix == ".gguf" or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or path.exists():
        raise UsageError(
            f"{place(name)}: no such folder; expected a Hugging Face model folder, a GGUF file, or "
            "the id of a model on the Hugging Face hub"
        )
    return name


def load_policy(
    name: str,
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008, it is frozen
    lora: LoRAConfig = LoRAConfig(),  # noqa: B008
    *,
    seed: int = 0,
    practise_with: str | None = None,
) -> Policy:
    """Opens a policy by its folder, GGUF file or hub id; raises `UsageError` if there is none.

    With `practise_with` the server at that address samples its actions; raises `InferenceError` if
    it is not there. Raises `RunError` if it is
    a unit of a run whose files have changed since they were written.
    """
    model = local_model(name)
    check_policy(Path(model))
    if practise_with is None:
        return Policy.load(model, compute, lora, seed=seed)
    server = server_at(practise_with)
    server.find()
    policy = Policy.load(model, compute, lora, seed=seed)
    policy.sampler = server
    return policy


def open_renderer(name: str) -> tuple[Renderer, int]:
    """Opens the renderer of a model, and returns it with its context in tokens; loads no weights.

    Raises `UsageError` as `local_model` does, or if the config gives no context.
    """
    model = local_model(name)
    base = base_of(model) if is_adapter(model) else model
    context = getattr(open_config(base), "max_position_embeddings", None)
    if context is None:
        raise UsageError(f"{place(name)}: its config lacks max_position_embeddings")
    return Renderer(open_tokenizer(model, base)), context


def renderer_of(
    source: TinyConfig | str, trajectories: Sequence[Trajectory]
) -> tuple[Renderer, int]:
    """The renderer of a model, or of one that is made from the trajectories, and its context.

    Raises what `open_renderer` raises.
    """
    if isinstance(source, str):
        return open_renderer(source)
    tokenizer = train_tokenizer(texts_of(trajectories), source.vocab_size)
    return Renderer(tokenizer), source.context


def open_task(config: TaskConfig) -> Task:
    """Opens a task; raises `UsageError` for unknown names in its config."""
    try:
        return config.make_task()
    except ValueError as error:
        raise UsageError(str(error)) from None
