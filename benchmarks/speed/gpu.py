"""On a GPU: trees that share prefixes with FlexAttention, with dense masks, and rows apart."""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from stepagent.inspection import path_logprobs
from stepagent.model.policy import Policy

from .material import Setup, open_policy, practised_tree
from .measuring import Row, check_close, ratio
from .stages import READING_TOLERANCE, updates_of
from .training import Training, train

TITLE = "On a GPU: one update of step-wise DPO, whole model, bfloat16"


def packed_dense(policy: Policy) -> None:
    """Trees with dense masks."""
    policy.model.set_attn_implementation("sdpa")


def apart(policy: Policy) -> None:
    """A row for each path."""
    policy.model.set_attn_implementation("sdpa")
    policy.layers.shares_prefixes = False


WAYS: dict[str, Callable[[Policy], None]] = {
    "FlexAttention": lambda _: None,
    "dense masks": packed_dense,
    "rows apart": apart,
}


def answer(setup: Setup) -> Iterator[Row]:
    """A row for each way and length; none without a GPU."""
    if not torch.cuda.is_available():
        return
    for trajectory in (setup.short, setup.long):
        training = Training(
            model=setup.real, adapter=None, trajectory=trajectory, loss="dpo", precision="bfloat16"
        )
        first: list[float] = []
        expected: list[float] = []
        for name, change in WAYS.items():
            policy = open_policy(setup.real, "bfloat16")
            change(policy)
            (read,) = path_logprobs(policy, [practised_tree(policy, trajectory)])
            expected = expected or read.tolist()
            check_close(name, expected, read.tolist(), READING_TOLERANCE["bfloat16"])
            torch.cuda.reset_peak_memory_stats()
            found = [
                taken
                for _ in range(setup.repeats)
                for taken in updates_of(partial(train, policy, training))[1]
            ]
            first = first or found
            yield {
                "steps": len(trajectory.steps),
                "rows": name,
                "seconds": round(median(found), 4),
                "times": ratio(first, found),
                "peak MB": round(torch.cuda.max_memory_allocated() / 2**20),
                "all": found,
            }
