"""Several processes that train one policy: who does what, and adding up.

torchrun or Ray starts them and calls them ranks. All run the same program on the same data, so each
knows what there is to do and which share of it is its own. What the others found is gathered, and
gradients are summed, so that all go on with the same numbers. With a single process everything here
does nothing.

Every function but `count`, `rank` and `is_first` must be called by all ranks, in the same order.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from stepagent.processes import launched
from stepagent.processes.heartbeat import losses_told, watched

K = TypeVar("K")
T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=2)
"""How long a rank waits for the others, which may still play in slow environments."""
BUCKET = 2**25
"""Numbers that are summed in one message."""


def _lost(reason: str) -> int:
    print(reason, file=sys.stderr)
    return os.EX_TEMPFAIL


@contextmanager
def joined(lost: Callable[[str], int] = _lost) -> Iterator[None]:
    """Within the block this process works together with those started with it, if there are any.

    Raises `Lost` if one of them is lost. If one hangs, this process ends with the exit code that
    `lost` returns for a line that says why.
    """
    count = launched.size()
    if count == 1:
        yield
        return
    global _is_joined
    with losses_told(), _grouped(), watched(launched.number(), count, lost):
        _is_joined = True
        try:
            yield
        finally:
            _is_joined = False


@contextmanager
def _grouped() -> Iterator[None]:
    """Within the block there is a process group; Ray has made one already."""
    if launched.is_by_ray():
        yield
        return
    if torch.cuda.is_available():
        # Who starts processes without torchrun may leave this one out.
        local = os.environ.get("LOCAL_RANK") or launched.number() % torch.cuda.device_count()
        torch.cuda.set_device(int(local))
    store, number, size = next(rendezvous("env://", timeout=LONGEST_WAIT))
    # When torchrun starts processes again, the store may still name those that have ended.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"stepagent/{attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend(), store=store, rank=number, world_size=size, timeout=LONGEST_WAIT
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def backend() -> str:
    """What carries messages: counts are on the CPU, gradients where the model is."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


_is_joined = False
"""Whether work is shared. A process group alone does not say so: it may be that of a user's own
program, which calls functions of this package in one of its processes only."""


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _is_joined else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _is_joined else 0


def is_first() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


def group() -> dist.ProcessGroup:
    """All processes, for other libraries."""
    found = dist.group.WORLD
    assert found is not None
    return found


def own(costs: Sequence[float]) -> list[int]:
    """Indices of the items that this process does, in order.

    Each item, the most expensive first, goes to the rank that has least to do (Graham 1969).
    """
    load = [0.0] * count()
    found = list[int]()
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = load.index(min(load))
        load[least] += costs[item]
        if least == rank():
            found.append(item)
    return sorted(found)


def every_other(items: Sequence[T]) -> Sequence[T]:
    """The items that this process does, if all cost the same."""
    return items[rank() :: count()]


def gathered(found: Mapping[K, T]) -> dict[K, T]:
    """What all processes found, by item."""
    every = dict[K, T]()
    for part in from_all(found):
        every |= part
    return every


def all_of(is_so: bool) -> bool:
    """Whether it is so in all processes."""
    return all(from_all(is_so))


def from_first(value: T) -> T:
    """The first process's value, for what is measured and may differ."""
    if count() == 1:
        return value
    values: list[T] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def summed(totals: Mapping[str, float]) -> dict[str, float]:
    """The sums of numbers by name, in the order of the ranks."""
    found = dict[str, float]()
    for part in from_all(totals):
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gives each parameter the sum of its gradients in all processes.

    The sum is the same to the last bit in all of them.
    """
    if count() == 1 or not parameters:
        return
    has_one = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    dist.all_reduce(has_one)
    trained = [p for p, some in zip(parameters, has_one.tolist(), strict=True) if some]
    for bucket in _buckets(trained):
        flat = torch.cat([_gradient(p).flatten() for p in bucket])
        dist.all_reduce(flat)
        for parameter, total in zip(
            bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True
        ):
            parameter.grad = total.view_as(parameter)


def wait() -> None:
    """Returns when all processes have come here."""
    if count() > 1:
        dist.barrier()


def from_all(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if count() == 1:
        return [value]
    values: list[T | None] = [None] * count()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one precision, up to `BUCKET` numbers together."""
    bucket = list[nn.Parameter]()
    for parameter in parameters:
        size = sum(p.numel() for p in bucket)
        if bucket and (parameter.dtype != bucket[0].dtype or size + parameter.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
