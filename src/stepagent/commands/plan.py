"""`stepagent plan`: tokens, updates, hours and memory of a run, before it is started."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from stepagent.commands.demonstrations import read_demonstrations
from stepagent.commands.models import local_model, prepare
from stepagent.commands.parsing import CONFIG, UsageError, check_at_least_one
from stepagent.commands.train_own import OWN
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.defaults import Situation, default_settings
from stepagent.experiment.planning.costs import Costs, known, measured
from stepagent.experiment.planning.duration import Layout, seconds, share_at_work
from stepagent.experiment.planning.gpus import GPUS
from stepagent.experiment.planning.lengths import data_of
from stepagent.experiment.planning.memory import Memory, memory
from stepagent.experiment.planning.shapes import Shape, shape_of_model, shape_of_size
from stepagent.experiment.planning.work import Data, Stage, is_planned, stages
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.saved_settings import settings_of
from stepagent.experiment.shared_batches import ROWS_EACH
from stepagent.model.device import CPU_TOKEN_BUDGET, fitting_tokens
from stepagent.scratch.small_model import TinyConfig

HERE = "here"
LONGEST = 2
"""Assumed: the longest action has this many times the tokens of the others."""
BUSY = 0.8
"""Below this share of the time at work, larger batches are recommended."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Says what a run will take: tokens, updates, hours, and memory of each process.

    Reads the config.json of MODEL, and the demonstrations if they are given; trains and writes
    nothing. RECIPE and all settings are those of stepagent train. Unit costs are
    measured on this machine, on a model with few layers of the right size; those of a GPU that is
    not here are worked out from its data sheet. Episodes in environments are not counted.

    For example: stepagent plan own --gpus 8 --model-size 8B --device H100
    """

    gpus: int = 1
    """Number of processes; each has a GPU of its own, if there are any."""
    model: str | None = None
    """The model: a Hugging Face folder, or the id of a model on the hub; config.json is read."""
    model_size: str | None = None
    """In place of a model its number of parameters, such as 8B or 500M."""
    device: str = HERE
    """What trains: here for this machine, or A100, H100, H200, L40S."""
    device_memory: float | None = None
    """Memory of a device, in GB; by default that of the named GPU or of this machine."""
    demonstrations: Path | None = None
    """File with demonstrations, whose number and lengths replace those below."""
    lengths: Data = Data()
    """Number and lengths of the demonstrations."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe's settings."""


def main(args: Sequence[str]) -> None:
    """The command."""
    recipe, options = (args[0], args[1:]) if args and args[0][:1] != "-" else (OWN, args)
    prepare()
    given = None if recipe == OWN else settings_of(recipe, known=(OWN, *RECIPES)).config
    asked = _parsed(recipe, options, given or default_settings(_situation(None, Data(), False)))
    check_at_least_one("--gpus", asked.gpus)
    if asked.device != HERE and asked.device not in GPUS:
        raise UsageError(f"--device {asked.device}: expected here, {', '.join(GPUS)}")
    shape = _shape(asked)
    model = local_model(asked.model) if asked.model else None
    data = asked.lengths
    if asked.demonstrations:
        data = data_of(read_demonstrations(asked.demonstrations, skip_invalid=False), model, data)
    if given is None:
        on_gpu = asked.device != HERE or torch.cuda.is_available()
        asked = _parsed(recipe, options, default_settings(_situation(shape, data, on_gpu)))
    _print(recipe, asked, shape, data)


def _parsed(recipe: str, options: Sequence[str], config: TrainConfig) -> Arguments:
    # A model is an option of its own, beside the size of one from scratch.
    tiny = config.model if isinstance(config.model, TinyConfig) else TinyConfig()
    named = config.model if isinstance(config.model, str) else None
    return tyro.cli(
        Arguments,
        prog=f"stepagent plan {recipe}",
        args=options,
        default=Arguments(config=replace(config, model=tiny), model=named),
        config=CONFIG,
    )


def _situation(shape: Shape | None, data: Data, on_gpu: bool) -> Situation:
    return Situation(
        parameters=shape.weights if shape else 8_000_000_000,
        adapted=True,
        on_gpu=on_gpu,
        demonstrations=data.demonstrations,
        longest_action=LONGEST * data.action_tokens,
        takes_detours=False,
    )


def _shape(asked: Arguments) -> Shape:
    """The model's shape; raises `UsageError` or `PlanError` if there is none."""
    if asked.model_size:
        return shape_of_size(asked.model_size)
    if asked.model:
        return shape_of_model(local_model(asked.model))
    raise UsageError("expected --model FOLDER, or --model-size such as 8B")


def _print(recipe: str, asked: Arguments, shape: Shape, data: Data) -> None:
    config, gpu = asked.config, GPUS.get(asked.device)
    if gpu and config.compute.precision == "auto":
        config = replace(config, compute=replace(config.compute, precision="bfloat16"))
    costs = known(gpu, shape, config, data) if gpu else measured(shape, config, data)
    room = asked.device_memory * 1e9 if asked.device_memory else gpu.memory if gpu else _memory()
    budget = _budget(asked, shape, data, costs, room, is_gpu=bool(gpu))
    needed = memory(shape, config, data, costs, budget, asked.gpus)
    longest = min(LONGEST * data.action_tokens, config.inspection.decoding.max_new_tokens)
    layout = Layout(processes=asked.gpus, budget=budget, longest=longest)
    if gpu and asked.gpus > 1:
        layout = _sending(layout, gpu.link, shape, config)
    every = [*stages(config, data)]
    for line in _assumptions(recipe, asked, config, shape, data, budget):
        print(line)
    print()
    for line in _table(every, costs, data, layout):
        print(line)
    print()
    is_cpu = not gpu and not torch.cuda.is_available()
    for line in _memory_lines(needed, room, is_cpu=is_cpu):
        print(line)
    for line in _advice(asked, config, every, data, layout, needed, room):
        print(line)


def _sending(layout: Layout, link: float, shape: Shape, config: TrainConfig) -> Layout:
    """With the seconds of messages, by the bandwidth between GPUs of one machine."""
    whole, rank = 2 * shape.layers * shape.in_layer, config.lora.rank
    if not config.compute.shard:
        return replace(layout, sent_by_update=8 * shape.trained(rank) / link)
    summed = 0 if rank else 2 * whole  # float32 gradients of the layers
    replicated = shape.trained(rank) if rank else shape.elsewhere
    return replace(
        layout, sent_by_update=8 * replicated / link, sent_by_row=(2 * whole + summed) / link
    )


def _budget(
    asked: Arguments, shape: Shape, data: Data, costs: Costs, room: float, *, is_gpu: bool
) -> int:
    if asked.config.compute.token_budget:
        return asked.config.compute.token_budget
    if not is_gpu and not torch.cuda.is_available():
        return CPU_TOKEN_BUDGET
    at_rest = memory(shape, asked.config, data, costs, 0, asked.gpus)
    reserved = at_rest.weights + at_rest.optimizer + at_rest.discriminator
    logits = at_rest.activations - costs.kept * data.tree(asked.config.inspection.num_actions)
    return fitting_tokens(int(room), int(reserved + logits), costs.kept)


def _memory() -> float:
    """Bytes of the GPU that is here, or of this machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[1])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _assumptions(
    recipe: str, asked: Arguments, config: TrainConfig, shape: Shape, data: Data, budget: int
) -> Iterator[str]:
    adapted = f"LoRA rank {config.lora.rank}" if config.lora.rank else "all weights trained"
    precision = "bfloat16" if config.compute.chosen(shape.width).is_half else "float32"
    trained = shape.trained(config.lora.rank)
    yield (
        f"{recipe}: {shape.name}, {shape.weights / 1e6:,.0f} M weights, {adapted} "
        f"({trained / 1e6:,.1f} M), {precision}"
    )
    yield (
        f"{data.demonstrations} demonstrations of {data.steps} steps and {data.tokens} tokens, "
        f"actions of {data.action_tokens} tokens; {data.held_out} held out"
    )
    where = "this machine, costs measured" if asked.device == HERE else f"{asked.device}, costs "
    assumed = "" if asked.device == HERE else "assumed from its data sheet"
    sharded = ", weights sharded" if config.compute.shard else ""
    yield f"{asked.gpus} processes on {where}{assumed}; rows of {budget} tokens{sharded}"
    if asked.device == HERE and asked.gpus > 1:
        yield "messages between processes are not counted"
    left_out = [method for method in config.methods if not is_planned(config, method)]
    if left_out:
        yield f"not counted, since they play episodes: {', '.join(left_out)}"
    if config.task is not None or config.detours:
        yield "not counted: episodes in the environment (dev, test, detours)"


def _table(every: Sequence[Stage], costs: Costs, data: Data, layout: Layout) -> Iterator[str]:
    yield (
        f"{'method':<10}{'stage':<15}{'tokens':>14}{'sampled':>12}{'updates':>9}"
        f"{'at work':>9}{'minutes':>10}"
    )
    for method, name in dict.fromkeys((s.method, s.name) for s in every):
        own = [s for s in every if (s.method, s.name) == (method, name)]
        minutes = sum(seconds(s, costs, data, layout) for s in own) / 60
        yield (
            f"{method:<10}{name:<15}{sum(s.tokens(data) for s in own):>14,}"
            f"{sum(s.sampled(data) for s in own):>12,}{sum(s.updates for s in own):>9,}"
            f"{min(share_at_work(s, data, layout) for s in own):>9.0%}{minutes:>10,.1f}"
        )
    by_kind = {
        kind: sum(s.tokens(data) for s in every if s.kind == kind)
        for kind in ("train", "read", "practice")
    }
    sampled, updates = sum(s.sampled(data) for s in every), sum(s.updates for s in every)
    hours = sum(seconds(s, costs, data, layout) for s in every) / 3600
    yield (
        f"all: {by_kind['train'] / 1e6:,.1f} M tokens trained, {by_kind['read'] / 1e6:,.1f} M "
        f"read, {by_kind['practice'] / 1e6:,.1f} M prefilled, {sampled / 1e6:,.2f} M sampled; "
        f"{updates:,} updates; {hours:,.2f} hours"
    )


def _memory_lines(needed: Memory, room: float, *, is_cpu: bool) -> Iterator[str]:
    parts = {
        "weights": needed.weights,
        "optimizer": needed.optimizer,
        "discriminator": needed.discriminator,
        "activations": needed.activations,
        "layers gathered for practice": needed.gathered,
        "cache of practice": needed.cache,
    }
    yield "memory of a process, beside libraries and data, in GB"
    for name, size in parts.items():
        if size:
            yield f"  {name:<30}{size / 1e9:>9.2f}"
    yield f"  {'peak in training':<30}{needed.training / 1e9:>9.2f}"
    yield f"  {'peak in practice':<30}{needed.practice / 1e9:>9.2f}"
    if is_cpu:
        yield "  on a CPU, gaps in the heap made processes take three times as much and more"
    fits = "fits" if needed.peak < room else "does not fit"
    yield f"  {fits} into {room / 1e9:.0f} GB"


def _advice(
    asked: Arguments,
    config: TrainConfig,
    every: Sequence[Stage],
    data: Data,
    layout: Layout,
    needed: Memory,
    room: float,
) -> Iterator[str]:
    """What to change, one line each."""
    idle = [s for s in every if s.batch and share_at_work(s, data, layout) < BUSY]
    if idle:
        stage = min(idle, key=lambda s: share_at_work(s, data, layout))
        yield (
            f"batches of {stage.batch} keep {layout.processes} processes at work for "
            f"{share_at_work(stage, data, layout):.0%} of the time ({stage.name}); "
            f"expected about {ROWS_EACH * layout.processes}"
        )
    if needed.peak > room and not config.compute.gradient_checkpointing:
        yield "--compute.gradient-checkpointing would need less memory"
    if needed.training > room and not config.compute.shard and asked.gpus > 1:
        yield "--compute.shard would share the weights among the processes"
