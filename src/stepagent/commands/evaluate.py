"""`stepagent evaluate`: episodes of a policy in a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.models import load_policy, open_task, prepare
from stepagent.commands.parsing import check_new_file, run_command
from stepagent.evaluation import EvaluationConfig, choose_items, evaluate, panel_hash
from stepagent.pipeline import PANEL_SEED, TaskConfig
from stepagent.results import interval_text
from stepagent.tasks.base import Split
from stepagent.trajectories import write_jsonl

DEFAULT = EvaluationConfig()


def evaluate_policy(
    *,
    policy: str,
    task: Annotated[TaskConfig, tyro.conf.arg(name="")],
    out: Path,
    split: Split = "test",
    num_per_type: int = 18,
    seed: int = 0,
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = DEFAULT,
) -> None:
    """Lets a policy act in the environment, once on each item of a fixed panel.

    Reads POLICY; writes OUT, one episode per line of JSON. Prints score (0 to 100, best of each
    episode) and success, both with 95 % intervals, and the hash of the panel's items: equal hashes
    mean equal items.

    For example: stepagent evaluate --policy novice --task-types find-plant --out episodes.jsonl

    Args:
        policy: A model folder, a GGUF file, or the id of a model on the hub.
        task: Environment and protocol.
        out: The file for the episodes; a name that ends in .gz is compressed.
        split: Which items to choose from.
        num_per_type: Items of each task type; all, where the split has fewer.
        seed: Of the sampling, if it is not greedy; the panel does not depend on it.
        config: How episodes are run.
    """
    check_new_file(out)
    prepare()
    agent = load_policy(policy)
    world = open_task(task)
    try:
        panel = choose_items(world, split, num_per_type, seed=PANEL_SEED)
        result = evaluate(agent, world, panel, config, seed=seed)
    finally:
        world.close()
    write_jsonl(out, result.episodes)
    print(f"score    {interval_text(result.score)}")
    print(f"success  {interval_text(result.success, percent=True)}")
    print(f"panel    {len(panel)} {split} items, sha256 {panel_hash(panel)}")
    print(f"episodes {out}")


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(evaluate_policy, "evaluate", args)
