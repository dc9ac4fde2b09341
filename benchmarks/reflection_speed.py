"""Compares implicit reflection on the prefix tree with TRL's DPOTrainer: same pairs, model, loss.

    python benchmarks/reflection_speed.py     # a table, and one JSON object as the last line

Expert trajectories of 12 to 15 steps come from ScienceWorld; a tiny policy, trained on them for a
few passes, acts in every state. Both sides then take the same optimizer steps on the same pairs of
expert and agent actions. Times include the reference's forward pass, but not loading and
tokenizing: both get token ids. Each measurement runs in its own process; TRL is given several batch
sizes and the fastest counts. Times are compared only if the losses agree.
"""

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import StepTree, inspect, step_trees
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.tasks.demonstrations import collect
from stepagent.tasks.scienceworld.task import ScienceWorld
from stepagent.trajectories import read_jsonl, write_jsonl
from stepagent.types import PracticedStep, Trajectory

TASK_TYPES = ("find-animal", "find-living-thing", "find-plant")
BETA, LEARNING_RATE, UPDATES, SEED = 0.1, 1e-4, 2, 0
TRL_BATCH_SIZES = (1, 2, 4, 8)
TOLERANCE = 2e-3
"""Largest difference of two losses; float32 sums in another order diverge after an update."""


def prepare(folder: Path, num_trajectories: int) -> None:
    """Writes the model, the trajectories and the practised steps."""
    task = ScienceWorld(TASK_TYPES)
    chosen: list[Trajectory] = []
    for item in (i for pair in zip(*_by_type(task), strict=False) for i in pair):
        chosen += [t for t in collect(task, [item]).trajectories if 12 <= len(t.steps) <= 15]
        if len(chosen) == num_trajectories:
            break
    task.close()
    build_tiny_model(chosen, TinyConfig(), seed=SEED, folder=folder)
    policy = Policy.load(folder)
    rendered = [policy.renderer.render(t) for t in chosen]
    config = SFTConfig(epochs=12, batch_size=2, optimizer=OptimizerConfig(learning_rate=1e-3))
    sft(policy, rendered, config, seed=SEED, log=lambda _: None)
    policy.save(folder)
    steps = inspect(policy, rendered, Decoding(max_new_tokens=24), seed=SEED)
    write_jsonl(folder / "trajectories.jsonl", chosen)
    write_jsonl(folder / "practised.jsonl", steps)


def _by_type(task: ScienceWorld) -> list[list[str]]:
    items = task.items("train")
    return [[i for i in items if task.group(i) == t] for t in TASK_TYPES]


def load(folder: Path) -> tuple[Policy, list[StepTree]]:
    """Loads the policy and trees, whose number of pairs every batch size divides."""
    policy = Policy.load(folder)
    rendered = [
        policy.renderer.render(t) for t in read_jsonl(folder / "trajectories.jsonl", Trajectory)
    ]
    trees = step_trees(rendered, read_jsonl(folder / "practised.jsonl", PracticedStep))
    extra = sum(int((~t.is_same).sum()) for t in trees) % max(TRL_BATCH_SIZES)
    for tree in trees:
        for path in (~tree.is_same).nonzero()[:, 0].tolist()[:extra]:
            tree.is_same[path] = True
            extra -= 1
    return policy, trees


def pairs(trees: list[StepTree]) -> list[dict[str, list[int]]]:
    """The pairs in TRL's format: prompt, chosen and rejected token ids."""
    rows = []
    for t in trees:
        expert: tuple[int, ...] = ()
        for number, path in enumerate(t.tree.paths):
            if t.is_expert[number]:
                expert = path
            elif not t.is_same[number]:
                state = t.tree.ancestors(t.tree.parents[path[0]])
                names = ("prompt_ids", "chosen_ids", "rejected_ids")
                found = zip(names, (state, expert, path), strict=True)
                rows.append({name: [t.tree.tokens[n] for n in nodes] for name, nodes in found})
    return rows


def update_tree(folder: Path) -> dict[str, Any]:
    """Takes UPDATES optimizer steps on all pairs, on the prefix tree."""
    policy, trees = load(folder)
    config = DPOConfig(
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=0.0, warmup_share=0.0),
        beta=BETA,
        sft_coef=0.0,
        epochs=UPDATES,
        batch_size=len(trees),
    )
    losses: list[float] = []
    with measured() as found:
        dpo(policy, trees, config, seed=SEED, log=lambda m: losses.append(m["loss"]))
    tokens = UPDATES * sum(len(t.tree) for t in trees)
    return found | {"losses": losses, "tokens": tokens, "pairs": len(pairs(trees))}


def update_trl(folder: Path, batch_size: int) -> dict[str, Any]:
    """Takes the same steps with `DPOTrainer`, accumulating gradients over batches of pairs."""
    from datasets import Dataset
    from trl import DPOConfig as TRLConfig
    from trl import DPOTrainer

    class FromIds(DPOTrainer):  # type: ignore[misc]
        """A trainer that takes the token ids that the policy sampled, as ours does."""

        def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
            return dataset

    policy, trees = load(folder)
    rows = pairs(trees)
    config = TRLConfig(
        output_dir=str(folder / "trl"),
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=len(rows) // batch_size,
        num_train_epochs=UPDATES,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
    trainer = FromIds(
        model=policy.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.renderer.tokenizer,
    )
    with measured() as found, contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    longest = [
        max(len(r["prompt_ids"]) + len(r[side]) for r in rows)
        for side in ("chosen_ids", "rejected_ids")
    ]
    tokens = UPDATES * sum(
        len(r["prompt_ids"]) + len(r[side]) for r in rows for side in ("chosen_ids", "rejected_ids")
    )
    return found | {"losses": losses, "tokens": tokens, "longest": max(longest), "pairs": len(rows)}


@contextlib.contextmanager
def measured() -> Any:
    """Records the block's seconds and the process's peak memory in MB in a dictionary."""
    found: dict[str, Any] = {}
    start = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - start
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs one measurement in a new process."""
    command = [sys.executable, __file__, "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(num_trajectories: int, repeats: int) -> None:
    """Prints the table and the JSON line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, num_trajectories)
        tree = run(folder, "--side", "tree")
        trl = {b: run(folder, "--side", "trl", "--batch-size", str(b)) for b in TRL_BATCH_SIZES}
        for size, other in trl.items():
            worst = max(abs(a - b) for a, b in zip(tree["losses"], other["losses"], strict=True))
            if worst > TOLERANCE:
                sys.exit(f"losses differ by {worst} at batch size {size}: {tree} {other}")
        best = min(trl, key=lambda b: trl[b]["seconds"])
        print(
            f"{tree['pairs']} pairs of {num_trajectories} trajectories, {UPDATES} updates, "
            f"{torch.get_num_threads()} threads; losses {tree['losses']} and {trl[best]['losses']}"
        )
        print(f"{'':<22}{'seconds':>9}{'peak MB':>9}{'tokens':>9}")
        for size, other in trl.items():
            print(
                f"{f'TRL, batch size {size}':<22}{other['seconds']:>9.2f}{other['peak_mb']:>9.0f}"
                f"{other['tokens']:>9}"
            )
        print(
            f"{'prefix tree':<22}{tree['seconds']:>9.2f}{tree['peak_mb']:>9.0f}{tree['tokens']:>9}"
        )
        times, memory = [], []
        for _ in range(
            repeats
        ):  # alternating, so that a change of the machine's speed affects both
            ours = run(folder, "--side", "tree")
            theirs = run(folder, "--side", "trl", "--batch-size", str(best))
            times.append(theirs["seconds"] / ours["seconds"])
            memory.append(theirs["peak_mb"] / ours["peak_mb"])
        print(
            json.dumps(
                {
                    "ratio_time": round(statistics.median(times), 2),
                    "ratio_peak_memory": round(statistics.median(memory), 2),
                    "ratio_time_all": [round(t, 2) for t in times],
                    "trl_batch_size": best,
                    "pairs": tree["pairs"],
                    "repeats": repeats,
                    "seed": SEED,
                }
            )
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=8, help="expert trajectories")
    parser.add_argument("--repeats", type=int, default=3, help="side-by-side measurements")
    parser.add_argument("--side", choices=("tree", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.side:
        case "tree":
            print(json.dumps(update_tree(options.folder)))
        case "trl":
            print(json.dumps(update_trl(options.folder, options.batch_size)))
        case None:
            compare(options.trajectories, options.repeats)
