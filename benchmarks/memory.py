"""How much memory many demonstrations take: inspection and both reflections, beyond the model.

python benchmarks/memory.py --demonstrations 10000

Walks of 20 steps and about 545 tokens, a model of one narrow layer with random weights, float32,
seed 0, one process. Each stage goes over all demonstrations once. Prints the peak of the resident
memory after each stage, less what it was when the model was loaded, and appends a JSON line to
build/memory.jsonl.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from speed.material import walk

from stepagent.algorithms.discriminator import DiscriminatorConfig, train_discriminator
from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.ppo import PPOConfig, ppo, read_before
from stepagent.algorithms.value_head import ValueHead
from stepagent.inspection import inspect, path_logprobs, step_trees
from stepagent.model.device import ComputeConfig
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.scratch.small_model import TinyConfig, build_tiny_model

STEPS = 20
WORDS = 23
"""In each observation; with these a walk has about 545 tokens."""
MODEL = TinyConfig(hidden_size=32, num_layers=1, num_heads=1, context=2048)


def peak() -> float:
    """Most resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Goes through all stages and prints a line after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demonstrations", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("build/memory.jsonl"))
    options = parser.parse_args()
    count = options.demonstrations
    with TemporaryDirectory() as folder:
        build_tiny_model([walk(STEPS, WORDS)], MODEL, seed=0, folder=Path(folder))
        policy = Policy.load(folder, ComputeConfig(precision="float32"))
    judge = policy.copy("discriminator")
    loaded, begun = peak(), time.perf_counter()
    found: dict[str, object] = {"demonstrations": count}

    def note(stage: str) -> None:
        found[stage] = {"mb": peak() - loaded, "seconds": time.perf_counter() - begun}
        print(f"{stage:<24}{peak() - loaded:>8.0f} MB{time.perf_counter() - begun:>9.0f} s")

    rendered = [
        policy.render(walk(STEPS, WORDS, number).model_copy(update={"id": f"walk/{number}"}))
        for number in range(count)
    ]
    tokens = sum(r.num_tokens for r in rendered)
    print(f"{count} demonstrations, {count * STEPS} steps, {tokens / count:.0f} tokens each")
    note("rendered")
    practised = inspect(policy, rendered, Decoding(max_new_tokens=16), seed=0)
    note("inspection")
    trees = step_trees(rendered, practised)
    agent = path_logprobs(policy, trees)
    note("reading")
    dpo(policy, trees, DPOConfig(batch_size=32), seed=0, log=lambda _: None)
    note("step-wise DPO")
    plan = DiscriminatorConfig(batch_size=32)
    train_discriminator(judge, trees, agent, plan, epochs=1, seed=0, log=lambda _: None)
    note("discriminator")
    head = ValueHead(policy.layers)
    before = read_before(policy, head, trees)
    rewards = [torch.ones(len(t.is_expert)) for t in trees]
    ppo(policy, head, trees, rewards, before, PPOConfig(epochs=1, batch_size=32), seed=0,
        log=lambda _: None)  # fmt: skip
    note("PPO")
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("a") as file:
        file.write(json.dumps({**found, "model_and_libraries_mb": loaded}) + "\n")


if __name__ == "__main__":
    main()
