"""`stepagent train own`: an agent from demonstrations of one's own, with or without environment."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.models import prepare, renderer_of
from stepagent.commands.outputs import check_no_input
from stepagent.commands.parsing import CONFIG, UsageError
from stepagent.commands.whole_run import SCRATCH, chosen_model, inputs_of, run_training
from stepagent.console.printable import printable
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.defaults import (
    Situation,
    count_parameters,
    default_settings,
    described,
)
from stepagent.experiment.own import OwnData, read_own_data
from stepagent.experiment.own_environment import (
    check_items,
    in_items,
    named_without_folder,
    python_file,
    sampled_from_expert,
)
from stepagent.experiment.pipeline import choose_panels
from stepagent.model.adapter_files import base_of, is_adapter
from stepagent.model.lora import LoRAConfig
from stepagent.scratch.small_model import TinyConfig
from stepagent.tasks.base import Task
from stepagent.tasks.environment_check import check_environment, first_states
from stepagent.tasks.own import EnvConfig, open_environment

OWN = "own"

EXAMPLE = Situation(
    parameters=135_000_000,
    adapted=True,
    on_gpu=False,
    demonstrations=100,
    longest_action=20,
    takes_detours=False,
)
"""The run whose defaults the help shows."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains an agent on your own demonstrations, in your own environment if you have one.

    Reads DEMONSTRATIONS, an expert's trajectories in any format that stepagent import reads, and
    MODEL. Holds out some trajectories, fine-tunes the model on the others (SFT), and improves it by
    rounds of inspection and reflection: the agent acts in every state of the demonstrations and
    learns from where it differs from the expert.

    No environment is needed. Without one the best round is the one whose most likely actions agree
    most often with the expert's in held-out steps, and how often the agent would succeed stays
    unknown. With --env the agent also learns from its own mistakes (detours), and rounds and
    methods are compared by what they achieve; if the environment is a Task with an expert, the
    demonstrations are collected from it.

    Writes the run folder OUT: config.json, demonstrations, metrics, every round's policy (units/),
    results.json, summary.md and report.html. Settings that are not given are chosen from the size
    of the model, the demonstrations and the device, and printed; the defaults below are those for
    a model of 135 million parameters on a CPU.

    For example: stepagent train own --demonstrations mine.jsonl --model models/mine --out runs/mine
    """

    demonstrations: Path | None = None
    """The expert's trajectories: messages, ShareGPT, ATIF, ... (docs/formats.md)."""
    model: str
    """The model to start from: a Hugging Face folder, a GGUF file, the id of one on the hub, or
    scratch for a small one made from the demonstrations."""
    out: Path
    """The run folder."""
    held_out: Path | None = None
    """Other trajectories of the expert, to measure agreement on; without it a share of the
    demonstrations is held out."""
    held_out_share: float = 0.2
    """Share of the demonstrations to hold out, chosen by their content: their order in the file
    does not matter."""
    resume: bool = False
    """Continue the run in OUT, if there is one; finished parts are kept."""
    storage: str | None = None
    """Where a copy of the run folder is kept: a folder, or a URL that fsspec opens. With --resume,
    machines that lack finished units bring them from there."""
    novice: Path | None = None
    """A run folder whose data and novice are reused; only the learners may have other settings."""
    env: Annotated[EnvConfig, tyro.conf.arg(name="")] = EnvConfig()
    """An environment to play in."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """All settings of the run."""


def train_own(options: Sequence[str], recipe: str, given: TrainConfig | None = None) -> None:
    """Runs the command; `given` are settings from a file, without it they are chosen."""
    prog = f"stepagent train {recipe}"
    # Defaults depend on the options, so these are parsed twice.
    asked = _parsed(options, prog, given or default_settings(EXAMPLE))
    prepare()
    model = None if asked.model == SCRATCH else asked.model
    if model is None:
        asked = replace(asked, config=replace(asked.config, lora=LoRAConfig(rank=0)))
    tiny = given.model if given and isinstance(given.model, TinyConfig) else TinyConfig()
    source = chosen_model(model, asked.config, tiny)
    files = [file for file in (asked.demonstrations, asked.held_out) if file]
    check_no_input(asked.out, files)
    if asked.env.env is None:
        _refuse_without_environment(asked.env, given)
    task = None if asked.env.env is None else open_environment(asked.env)
    try:
        data = _data(asked, source, task)
        known = _situation(source, data, asked.config, task)
        config = asked.config
        if given is None:
            config = _parsed(options, prog, default_settings(known)).config
        config = replace(
            config,
            model=chosen_model(model, config, tiny),
            task=named_without_folder(asked.env) if task else None,
        )
        if task is None:
            config.check_without_environment()
        else:
            check_items(config, data, task)
            for warning in check_environment(task, data.demonstrations):
                print(f"warning: {warning}")
            panels = choose_panels(config, task, data if asked.demonstrations else None)
            _check_first_states(task, [i for p in panels.values() for i in p], source, data)
        _tell(data, known, config, is_collected=asked.demonstrations is None)
        run_training(
            recipe,
            config,
            asked.out,
            _inputs(asked, source),
            task=task,
            novice=asked.novice,
            resume=asked.resume,
            storage=asked.storage,
            own=data if asked.demonstrations else None,
        )
    finally:
        if task is not None:
            task.close()


def _refuse_without_environment(asked: EnvConfig, given: TrainConfig | None) -> None:
    """Raises `UsageError` for an option of an environment that does not exist."""
    default = given.task if given and isinstance(given.task, EnvConfig) else EnvConfig()
    for field in fields(EnvConfig):
        if field.name != "env" and getattr(asked, field.name) != getattr(default, field.name):
            option = f"--{field.name.replace('_', '-')}"
            raise UsageError(f"{option} has no effect without an environment; name one with --env")


def _data(asked: Arguments, source: TinyConfig | str, task: Task | None) -> OwnData:
    """The demonstrations: from files, or some of the environment's expert, to know their size."""
    if asked.demonstrations is None and asked.held_out is not None:
        raise UsageError("--held-out: expected --demonstrations too; without it both are collected")
    if asked.held_out is not None and asked.held_out_share != Arguments.held_out_share:
        raise UsageError("--held-out-share has no effect: --held-out names what is held out")
    if asked.demonstrations is not None:
        data = read_own_data(
            asked.demonstrations,
            asked.held_out,
            lambda trajectories: renderer_of(source, trajectories),
            share=asked.held_out_share,
        )
        return data if task is None else in_items(data, task)
    if task is None:
        raise UsageError(
            "--demonstrations: name a file of an expert's trajectories, or with --env an "
            "environment that has an expert"
        )
    return sampled_from_expert(task, lambda trajectories: renderer_of(source, trajectories))


def _inputs(asked: Arguments, source: TinyConfig | str) -> dict[str, str]:
    """What the run starts from, by content; a share that is held out stands for its file."""
    found = inputs_of(source, demonstrations=asked.demonstrations, held_out=asked.held_out)
    if asked.demonstrations and not asked.held_out:
        found["held_out"] = f"{asked.held_out_share:g} of the demonstrations"
    if file := python_file(asked.env):
        found |= inputs_of(TinyConfig(), env=file)
    return found


def _parsed(options: Sequence[str], prog: str, config: TrainConfig) -> Arguments:
    tiny = config.model if isinstance(config.model, TinyConfig) else TinyConfig()
    default = Arguments(
        model=tyro.MISSING,
        out=tyro.MISSING,
        env=config.task if isinstance(config.task, EnvConfig) else EnvConfig(),
        config=replace(config, model=tiny, task=None),
    )
    return tyro.cli(Arguments, prog=prog, args=options, default=default, config=CONFIG)


def _situation(
    source: TinyConfig | str, data: OwnData, asked: TrainConfig, task: Task | None
) -> Situation:
    parameters = None
    if isinstance(source, str):
        parameters = count_parameters(base_of(source) if is_adapter(source) else source)
    return Situation(
        parameters=parameters,
        adapted=asked.lora.rank > 0,
        on_gpu=asked.compute.torch_device.type == "cuda",
        demonstrations=len(data.demonstrations),
        longest_action=data.longest_action,
        takes_detours=task is not None and len(data.demonstrations) > data.without_item,
    )


def _check_first_states(
    task: Task, items: Sequence[str], source: TinyConfig | str, data: OwnData
) -> None:
    """Raises `UsageError` if an item begins with more than the model can read."""
    renderer, context = renderer_of(source, [*data.demonstrations, *data.held_out])
    for item, instruction, observation in first_states(task, items):
        length = len(renderer.opening(instruction, observation)) + len(renderer.ask)
        if length >= context:
            raise UsageError(
                f"{printable(item)}: its first state has {length} tokens, the model's context is "
                f"{context}; use a model with a longer context, or shorten the observations"
            )


def _tell(data: OwnData, known: Situation, config: TrainConfig, *, is_collected: bool) -> None:
    """Prints what the run will do."""
    for reason, number in data.left_out.items():
        print(f"left out: {number} x {reason}")
    if is_collected:
        print("data: collected from the environment's expert")
    else:
        steps, held_out = (
            sum(len(t.steps) for t in side) for side in (data.demonstrations, data.held_out)
        )
        print(
            f"data: {len(data.demonstrations)} demonstrations ({steps} steps), "
            f"{len(data.held_out)} held out ({held_out} steps)"
        )
    if data.without_item:
        print(
            f"data: {data.without_item} demonstrations belong to no item of the environment, so "
            "they take no detours; name the item in `id`, or its seed in the metadata"
        )
    for line in described(known, config):
        print(line)
