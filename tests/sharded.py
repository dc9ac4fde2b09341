"""What `test_sharding.py` starts in several processes, with weights that these share."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

import together
from fakes import demonstrations, in_float64, practised_trees, random_policy, rendered
from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import inspect, path_logprobs, step_trees
from stepagent.model.device import ComputeConfig
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.packs import own_packs
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.processes import ranks
from test_pipeline import CONFIG, FAST

CPU = torch.device("cpu")


def sharded(policy: Policy) -> Policy:
    """The policy with its weights shared among the processes, if there are several."""
    if ranks.count() > 1:
        policy.layers.shard(CPU)
    policy.layers.token_budget = together.BUDGET
    return policy


def as_plain(found: Any) -> Any:
    """Results with whole tensors in place of sharded ones."""
    if isinstance(found, DTensor):
        return found.full_tensor()
    if isinstance(found, dict):
        return {name: as_plain(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(map(as_plain, found))
    return found


def learners() -> Any:
    """As `together.learners`, in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "small", sharded)
        return as_plain(together.learners())


def uneven() -> Any:
    """The gradient of four packs, of which the first process has three."""
    policy = sharded(in_float64(random_policy(scale=4.0)))
    trees = [t.tree for t in practised_trees(policy, 4)[:4]]
    policy.layers.token_budget = 1  # each tree is a pack

    def own(costs: Sequence[float]) -> list[int]:
        assert len(costs) == 4
        return [[0, 1, 2], [3]][ranks.rank()] if ranks.count() > 1 else [0, 1, 2, 3]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "own", own)
        for packed in own_packs(policy.layers, trees, policy.layers.token_budget):
            policy.path_logprobs(packed).sum().backward()  # type: ignore[no-untyped-call]
    parameters = policy.parameters()
    ranks.sum_gradients([p for p in parameters if not isinstance(p, DTensor)])
    return as_plain([p.grad for p in parameters])


def stages(out: str) -> Any:
    """What stages find and save, in each precision, with LoRA and without, sharded or not.

    The base is a model folder beside the results.
    """
    return {
        (precision, rank, shard): _stages(out, precision, rank, shard)
        for precision in ("float32", "bfloat16")
        for rank in (0, 4)
        for shard in (False, True)
    }


def _stages(out: str, precision: Any, rank: int, shard: bool) -> Any:
    compute = ComputeConfig(precision=precision, shard=shard, token_budget=together.BUDGET)
    policy = Policy.load(f"{out}-base", compute, LoRAConfig(rank=rank))
    assert policy.layers.is_sharded == shard
    own = rendered(policy, [*demonstrations()[:4], *demonstrations()[40:44]])
    practised = inspect(policy, own, Decoding(max_new_tokens=8), seed=0)
    trees, logged = step_trees(own, practised), list[Metrics]()
    before = path_logprobs(policy, trees)
    copied = policy.copy("copied")
    dpo(policy, trees, DPOConfig(optimizer=FAST, batch_size=4), seed=1, log=logged.append)
    plan = SFTConfig(epochs=1, optimizer=FAST, batch_size=3)
    sft(copied, own, plan, seed=1, log=logged.append)
    after = path_logprobs(policy, trees)
    folder = f"{out}-{precision}-{rank}-{shard}"
    policy.save(folder)
    ranks.wait()
    of_copy = path_logprobs(copied, trees)
    copied.restore(folder)
    return practised, before, logged, after, of_copy, path_logprobs(copied, trees)


def run(folder: str, *kills: str) -> None:
    """As `together.run`."""
    config = replace(
        CONFIG, compute=replace(CONFIG.compute, shard=True, token_budget=together.BUDGET)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "CONFIG", config)
        together.run(folder, *kills)


if __name__ == "__main__":
    random_policy(scale=4.0)  # together, transformers would save only the first process's models
    with ranks.joined():
        what, *given = sys.argv[1:]
        if what == "run":
            run(*given)
        else:
            found = {"learners": learners(), "uneven": uneven(), "stages": stages(given[0])}
            torch.save(found, f"{given[0]}-{ranks.rank()}.pt")
