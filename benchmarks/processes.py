"""What several processes share: CPU seconds and memory of one process and of the slowest of two.

python benchmarks/processes.py

One thread in each process, a small model with random weights (4 layers), 64 trajectories of 8 to 20
steps, float32, batches of 32 for step-wise DPO and for the discriminator, seed 0. Prints a table
and appends one JSON line for each number of processes to build/processes.jsonl.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from speed.material import walk

from stepagent.algorithms.discriminator import DiscriminatorConfig, train_discriminator
from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.inspection import inspect, path_logprobs, step_trees
from stepagent.model.device import ComputeConfig
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.processes import ranks
from stepagent.scratch.small_model import TinyConfig, build_tiny_model

T = TypeVar("T")

LAYOUTS = {"one": (1, False), "two": (2, False), "two, sharded": (2, True)}
"""How many processes, and whether they share the weights."""
TRAJECTORIES = [
    walk(8 + number % 13, 32).model_copy(update={"id": f"walk/{number}"}) for number in range(64)
]


def work(folder: Path, sharded: bool) -> None:
    """Measures every stage in this process; the first one prints what all have found."""
    torch.set_num_threads(1)
    with ranks.joined():
        compute = ComputeConfig(precision="float32", shard=sharded, device="cpu")
        policy = Policy.load(folder, compute)
        rendered = [policy.render(trajectory) for trajectory in TRAJECTORIES]
        begun = time.process_time()
        taken = dict[str, float]()

        def timed(stage: str, do: Callable[[], T]) -> T:
            ranks.wait()
            start = time.process_time()
            found = do()
            taken[stage] = time.process_time() - start
            return found

        steps = timed(
            "inspection", lambda: inspect(policy, rendered, Decoding(max_new_tokens=16), seed=0)
        )
        trees = step_trees(rendered, steps)
        agent = timed("reading", lambda: path_logprobs(policy, trees))
        logged: list[dict[str, float]] = []
        timed(
            "step-wise DPO",
            lambda: dpo(policy, trees, DPOConfig(batch_size=32), seed=0, log=logged.append),
        )
        judge = DiscriminatorConfig(batch_size=32)
        timed(
            "discriminator",
            lambda: train_discriminator(
                policy, trees, agent, judge, epochs=1, seed=0, log=logged.append
            ),
        )
        taken["all, waiting included"] = time.process_time() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        every = ranks.from_all({"taken": taken, "peak_mb": peak})
        if ranks.is_first():
            print(json.dumps({"processes": every, "last_loss": logged[-1]["loss"]}))


def measure(folder: Path, count: int, sharded: bool) -> dict[str, object]:
    """Starts so many processes; returns what the first one prints."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={count}", __file__, "--worker", str(folder),
            *(["--sharded"] if sharded else []),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measures all layouts and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/processes.jsonl"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sharded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.sharded)
        return
    found = {}
    with TemporaryDirectory() as folder:
        build_tiny_model(TRAJECTORIES, TinyConfig(), seed=0, folder=Path(folder))
        for name, layout in LAYOUTS.items():
            found[name] = measure(Path(folder), *layout)
            options.out.parent.mkdir(exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps({"layout": name, **found[name]}) + "\n")
    one = found["one"]["processes"][0]
    print(f"{'CPU seconds of the slowest process':<36}" + "".join(f"{n:>22}" for n in found))
    for stage, alone in one["taken"].items():
        cells = []
        for layout in found.values():
            slowest = max(p["taken"][stage] for p in layout["processes"])
            cells.append(f"{slowest:.2f} (1/{alone / slowest:.2f})")
        print(f"{stage:<36}" + "".join(f"{cell:>22}" for cell in cells))
    peaks = [max(p["peak_mb"] for p in layout["processes"]) for layout in found.values()]
    print(f"{'peak MB of a process':<36}" + "".join(f"{peak:>22.0f}" for peak in peaks))
    losses = [layout["last_loss"] for layout in found.values()]
    print(f"{'last loss':<36}" + "".join(f"{loss:>22.9f}" for loss in losses))


if __name__ == "__main__":
    main()
