"""Measures tokens per second of SFT and both kinds of reflection, with and without shared prefixes.

Each method makes one pass over the same practised demonstrations, first with shared prefixes, then
with one row for each path, in the same process. `tokens` counts those of the original paths, so
both variants do the same work. The share of the machine's peak counts tokens actually forwarded, at
2 floating-point operations per parameter each, or 6 (4 with LoRA) with gradients, relative to the
fastest large matrix product in the same precision.

    python benchmarks/throughput.py --policy FOLDER --demonstrations FILE --trajectories 16
    python benchmarks/throughput.py --random 1b --tokenizer FOLDER --demonstrations FILE

Prints one JSON line for each measurement.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from stepagent.algorithms.discriminator import (
    DiscriminatorConfig,
    expert_logits,
    train_discriminator,
)
from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.ppo import PPOConfig, ValueHead, ppo, read_before
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import StepTree, inspect, step_trees
from stepagent.model.device import ComputeConfig
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import pack
from stepagent.trajectories import read_trajectories

RANDOM = {
    "1b": LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}  # fmt: skip
"""Model shapes with random weights, to measure speed only."""


def synchronize() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of the fastest of ten large matrix products."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        synchronize()
        start = time.perf_counter()
        a @ b
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def learners(
    policy: Policy, trees: Sequence[StepTree], batch_size: int
) -> dict[str, tuple[int, Callable[[], object]]]:
    """For each method its operations per token and parameter, and a function for one pass."""
    found = policy.copy("discriminator")

    def inverse() -> None:
        # The setting changes during the measurement.
        found.layers.shares_prefixes = policy.layers.shares_prefixes
        config, head = DiscriminatorConfig(batch_size=batch_size), ValueHead(policy.layers)
        before = read_before(policy, head, trees)
        agent = [t.tree.sum_by_path(own) for t, own in zip(trees, before.logprobs, strict=True)]
        train_discriminator(found, trees, agent, config, epochs=1, seed=0, log=lambda _: None)
        rewards = expert_logits(found, trees, agent)
        ppo(
            policy, head, trees, rewards, before,
            PPOConfig(epochs=1, batch_size=batch_size), seed=0, log=lambda _: None,
        )  # fmt: skip

    def implicit() -> None:
        config = DPOConfig(epochs=1, batch_size=batch_size)
        dpo(policy, trees, config, seed=0, log=lambda _: None)

    # A frozen base needs no weight gradients. Implicit: reference, gradient. Inverse: the
    # agent's log-probabilities, the discriminator's gradient, rewards, gradient.
    train = 6 if policy.layers.adapter is None else 4
    return {"implicit": (2 + train, implicit), "inverse": (2 + train + 2 + train, inverse)}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", help="a model folder or hub id")
    parser.add_argument("--random", choices=RANDOM, help="a shape with random weights instead")
    parser.add_argument("--tokenizer", help="folder of its tokenizer")
    parser.add_argument("--demonstrations", type=Path, required=True)
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=0, help="LoRA's rank; 0 trains the model")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = options.policy
        if options.random:
            source = name
            tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
            config = RANDOM[options.random]
            config.vocab_size = len(tokenizer)
            AutoModelForCausalLM.from_config(config).save_pretrained(name)
            tokenizer.save_pretrained(name)
        policy = Policy.load(source, ComputeConfig(), LoRAConfig(rank=options.rank))
    measure(policy, options)


def measure(policy: Policy, options: argparse.Namespace) -> None:
    """Measures every method, with shared and separate rows, the given number of times."""
    own = read_trajectories(options.demonstrations).trajectories[: options.trajectories]
    demonstrations = [policy.render(t) for t in own]
    practised = inspect(policy, demonstrations, Decoding(max_new_tokens=16), seed=0)
    trees = step_trees(demonstrations, practised)
    dtype = torch.bfloat16 if policy.layers.is_half else torch.float32
    peak = matmul_peak(policy.model.device, dtype)
    parameters = sum(p.numel() for p in policy.model.parameters())
    config = SFTConfig(epochs=1, batch_size=options.batch_size)

    def clone() -> None:
        sft(policy, demonstrations, config, seed=0, log=lambda _: None)

    methods = {
        "sft": (4 if options.rank else 6, clone),
        **learners(policy, trees, options.batch_size),
    }
    whole = sum(len(t.tree.ancestors(path[-1])) for t in trees for path in t.tree.paths)
    alone = sum(
        len(state) + len(a)
        for d in demonstrations
        for state, a in zip(d.states, d.actions, strict=True)
    )
    for repeat in range(options.repeats + 1):
        for method, (operations, run) in methods.items():
            for shared in (True, False):
                policy.layers.shares_prefixes = shared
                packs = pack([t.tree for t in trees], 2**31, shared=shared)
                forwarded = sum(p.num_tokens for p in packs)
                paths = whole
                if method == "sft":
                    forwarded = sum(d.num_tokens for d in demonstrations) if shared else alone
                    paths = alone
                synchronize()
                start = time.perf_counter()
                run()
                synchronize()
                seconds = time.perf_counter() - start
                if not repeat:
                    continue  # FlexAttention compiles in the first pass
                print(
                    json.dumps(
                        {
                            "method": method,
                            "rows": "shared" if shared else "separate",
                            "repeat": repeat,
                            "seconds": round(seconds, 3),
                            "tokens": paths,
                            "tokens_per_second": round(paths / seconds),
                            "forwarded": forwarded,
                            "share_of_peak": round(
                                operations * parameters * forwarded / seconds / peak, 4
                            ),
                            "peak_tflops": round(peak / 1e12, 2),
                            "parameters": parameters,
                            "token_budget": policy.layers.token_budget,
                            "device": str(policy.model.device),
                            "rank": options.rank,
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
