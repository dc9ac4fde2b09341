"""Plans beside runs: planned and measured time and memory of stages, for three sizes of model.

python benchmarks/plan.py

Ten trajectories of ScienceWorld, each four times, by agents that have cloned them: two from scratch
(width 64 and 256, all weights, float32) and SmolLM2-135M (LoRA, the precision that is chosen here).
Costs are measured before and after the run and averaged. Needs what `make bench` has made in
build/bench. Prints a table and appends one JSON line for each size to build/plan.jsonl.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

from speed.material import clone

from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.planning.costs import Costs, measured
from stepagent.experiment.planning.duration import Layout, seconds
from stepagent.experiment.planning.lengths import data_of
from stepagent.experiment.planning.memory import memory
from stepagent.experiment.planning.shapes import shape_of_model
from stepagent.experiment.planning.work import Data, Stage
from stepagent.inspection import inspect, path_logprobs, step_trees
from stepagent.learners.implicit import ImplicitConfig
from stepagent.model.device import CPU_TOKEN_BUDGET, deterministic
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.practice import InspectionConfig
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.trajectories import read_jsonl
from stepagent.types import Trajectory

T = TypeVar("T")

BENCH = Path("build/bench")
SIZES = {
    "width 64": (BENCH / "tiny-agent", 0),
    "width 256": (BENCH / "small-agent", 0),
    "SmolLM2-135M": (BENCH / "SmolLM2-135M-Instruct-agent", 16),
}
"""Folder of the agent, and rank of LoRA."""
COPIES = 4
BATCH = 4
LONGEST = 24
"""Most tokens of an action."""
ADAM = OptimizerConfig(learning_rate=1e-5)


def trajectories() -> list[Trajectory]:
    """Ten trajectories, each several times under another name."""
    _, _, *cloned = read_jsonl(BENCH / "trajectories.jsonl", Trajectory)
    return [t.model_copy(update={"id": f"{t.id}-{copy}"}) for copy in range(COPIES) for t in cloned]


def config_of(rank: int) -> TrainConfig:
    """The settings of the stages."""
    return TrainConfig(
        task=None,
        lora=LoRAConfig(rank=rank),
        methods=("implicit",),
        sft=SFTConfig(epochs=1, batch_size=BATCH, optimizer=ADAM),
        implicit=ImplicitConfig(epochs=1, batch_size=BATCH, optimizer=ADAM),
        inspection=InspectionConfig(decoding=Decoding(max_new_tokens=LONGEST)),
    )


def run(folder: Path, rank: int) -> dict[str, float]:
    """Seconds of each stage, and MB beyond what the libraries and the data take."""
    config, taken = config_of(rank), dict[str, float]()
    _warm_up()
    begun = _resident()
    policy = Policy.load(folder, config.compute, config.lora)
    rendered = [policy.render(t) for t in trajectories()]
    _forget_peak()

    def timed(stage: str, do: Callable[[], T]) -> T:
        start = time.perf_counter()
        found = do()
        taken[stage] = time.perf_counter() - start
        return found

    steps = timed("inspection", lambda: inspect(policy, rendered, _decoding(), seed=0))
    trees = step_trees(rendered, steps)
    timed("reading", lambda: path_logprobs(policy, trees))
    plan = DPOConfig(epochs=1, batch_size=BATCH, optimizer=ADAM)
    timed("step-wise DPO", lambda: dpo(policy, trees, plan, seed=0, log=lambda _: None))
    taken["step-wise DPO"] -= taken["reading"]  # it reads its reference first
    timed("SFT", lambda: sft(policy, rendered, config.sft, seed=0, log=lambda _: None))
    return taken | {"MB": _status("VmHWM") - begun}


def planned(folder: Path, rank: int) -> dict[str, object]:
    """The costs, and the lengths of the data."""
    config = config_of(rank)
    data = data_of(trajectories(), str(folder), Data(held_out=0))
    shape = shape_of_model(str(folder))
    costs = measured(shape, config, data)
    return {"costs": asdict(costs), "data": asdict(data)}


def compare(name: str) -> dict[str, object]:
    """Planned and measured figures of a size."""
    folder, rank = SIZES[name]
    before, found, after = (_child(name, what) for what in ("plan", "run", "plan"))
    costs = Costs(
        **{
            field.name: (before["costs"][field.name] + after["costs"][field.name]) / 2
            for field in fields(Costs)
        }
    )
    data, config = Data(**before["data"]), config_of(rank)
    many = data.demonstrations
    every = (
        Stage("implicit", "inspection", "practice", many, 1),
        Stage("implicit", "reading", "read", many, 1),
        Stage("implicit", "step-wise DPO", "train", many, 1, BATCH),
        Stage("sft", "SFT", "train", many, 0, BATCH),
    )
    layout = Layout(processes=1, budget=CPU_TOKEN_BUDGET, longest=LONGEST)
    row: dict[str, object] = {"model": name}
    total = [0.0, 0.0]
    for stage in every:
        pair = seconds(stage, costs, data, layout), found[stage.name]
        row[stage.name] = pair
        total = [own + more for own, more in zip(total, pair, strict=True)]
    needed = memory(shape_of_model(str(folder)), config, data, costs, CPU_TOKEN_BUDGET, processes=1)
    return row | {"all": tuple(total), "MB": (needed.peak / 1e6, found["MB"])}


def main() -> None:
    """Compares all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--out", type=Path, default=Path("build/plan.jsonl"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        deterministic()
        name, what = options.child
        print(json.dumps({"plan": planned, "run": run}[what](*SIZES[name])))
        return
    tiny = SIZES["width 64"][0]
    if not (tiny / "tokenizer.json").exists():
        known, start = [*read_jsonl(BENCH / "trajectories.jsonl", Trajectory)], BENCH / "tiny"
        build_tiny_model(known, TinyConfig(hidden_size=64, num_layers=2), seed=0, folder=start)
        clone(start, known[2:], tiny, 40, 3e-3)
    for name in options.sizes or SIZES:
        row = compare(name)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name)
        for what, pair in row.items():
            if isinstance(pair, tuple):
                plan, real = pair
                print(
                    f"  {what:<16}planned {plan:>9.2f}  measured {real:>9.2f}  {plan / real:>6.2f}"
                )


def _decoding() -> Decoding:
    return Decoding(max_new_tokens=LONGEST)


def _child(name: str, what: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--child", name, what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _warm_up() -> None:
    """Goes through all stages with a tiny model, which loads what libraries load late."""
    config = config_of(0)
    policy = Policy.load(SIZES["width 64"][0], config.compute)
    rendered = [policy.render(t) for t in trajectories()[:2]]
    trees = step_trees(rendered, inspect(policy, rendered, _decoding(), seed=0))
    dpo(policy, trees, DPOConfig(epochs=1, optimizer=ADAM), seed=0, log=lambda _: None)


def _resident() -> float:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def _forget_peak() -> None:
    """Opening a model takes more for a moment than it has afterwards; that is not planned."""
    _resident()
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    """Memory of this process in MB, by its name in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main()
