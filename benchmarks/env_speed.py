"""Measures environment steps per second of installed tasks, and of ScienceWorld's own environment.

The expert's actions are replayed on the same items, first in one environment, then in several
threads; loading an item is timed separately. For ScienceWorld the same actions are also replayed in
`scienceworld.ScienceWorldEnv`, in the same process.

    python benchmarks/env_speed.py --tasks scienceworld webshop hotpotqa --items 20 --threads 8

Prints one JSON line for each task and engine.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from stepagent.evaluation import choose_items
from stepagent.experiment.config import TASKS
from stepagent.tasks.base import Task
from stepagent.tasks.demonstrations import collect
from stepagent.tasks.scienceworld.task import ScienceWorld
from stepagent.types import Trajectory


def played(task: Task, trajectories: Sequence[Trajectory]) -> tuple[float, float, int]:
    """Replays trajectories in one environment: seconds of resets, seconds of steps, steps."""
    env = task.make_env()
    resetting = stepping = 0.0
    steps = 0
    for trajectory in trajectories:
        start = time.perf_counter()
        env.reset(options={"item": trajectory.id})
        resetting += time.perf_counter() - start
        start = time.perf_counter()
        for step in trajectory.steps:
            steps += 1
            if any(env.step(step.action)[2:4]):
                break
        stepping += time.perf_counter() - start
    env.close()
    return resetting, stepping, steps


def show(**row: object) -> None:
    """Prints a row as one line of JSON."""
    print(json.dumps(row), flush=True)


def measure(name: str, num_items: int, num_threads: int) -> None:
    """Measures one task, in one environment and in several threads."""
    task = TASKS[name].make_task()
    try:
        items = choose_items(task, "train", num_items, seed=0)[: num_items * 4]
        trajectories = collect(task, items).trajectories
        played(task, trajectories[:1])  # starts engines
        resetting, stepping, steps = played(task, trajectories)
        show(
            task=name, engine="stepagent", threads=1, episodes=len(trajectories), steps=steps,
            steps_per_second=round(steps / stepping, 1),
            seconds_per_reset=round(resetting / len(trajectories), 4),
        )  # fmt: skip
        shares = [trajectories[i::num_threads] for i in range(num_threads)]
        start = time.perf_counter()
        with ThreadPoolExecutor(num_threads) as threads:
            found = list(threads.map(lambda share: played(task, share), filter(None, shares)))
        seconds = time.perf_counter() - start
        steps = sum(count for _, _, count in found)
        show(
            task=name, engine="stepagent", threads=num_threads, episodes=len(trajectories),
            steps=steps, steps_per_second_with_resets=round(steps / seconds, 1),
        )  # fmt: skip
        if isinstance(task, ScienceWorld):
            original(trajectories, task.step_limit)
    finally:
        task.close()


def original(trajectories: Sequence[Trajectory], step_limit: int) -> None:
    """Measures the same actions in ScienceWorld's own environment."""
    from scienceworld import ScienceWorldEnv

    env = ScienceWorldEnv("", envStepLimit=step_limit)
    resetting = stepping = 0.0
    steps = 0
    for trajectory in trajectories:
        task_type, variation = trajectory.id.rsplit("/", 1)
        start = time.perf_counter()
        env.load(task_type, int(variation), "easy")
        env.reset()
        resetting += time.perf_counter() - start
        start = time.perf_counter()
        for step in trajectory.steps:
            steps += 1
            if env.step(step.action)[2]:
                break
        stepping += time.perf_counter() - start
    env.close()
    show(
        task="scienceworld", engine="ScienceWorldEnv", threads=1, episodes=len(trajectories),
        steps=steps, steps_per_second=round(steps / stepping, 1),
        seconds_per_reset=round(resetting / len(trajectories), 4),
    )  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["scienceworld"])
    parser.add_argument(
        "--items", type=int, default=5, help="items per group; at most four times as many in all"
    )
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    for name in options.tasks:
        measure(name, options.items, options.threads)


if __name__ == "__main__":
    main()
