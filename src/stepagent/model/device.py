"""Device, precision, deterministic numbers, and how many tokens fit into memory at once."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from stepagent.model.products import fastest, onednn_gain, uses_onednn
from stepagent.processes import ranks

CPU_TOKEN_BUDGET = 512
"""Longer rows spend more on attention between trees than they save by sharing a forward pass."""
MAX_TOKEN_BUDGET = 16384
"""Memory of a dense mask grows with its square; longer rows make no better use of a GPU."""
HEADROOM = 0.8
"""Share of the free memory that is used; the allocator loses some to fragmentation."""
MIN_HALF_WIDTH = 384
"""Matrix products of narrower models are too small to gain from bfloat16 or from more threads."""
MIN_GAIN = 1.5
"""bfloat16 is chosen if its matrix products are at least this many times as fast."""
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")
"""PyTorch's names of what a processor multiplies bfloat16 numbers with."""

T = TypeVar("T")


class ComputeError(RuntimeError):
    """This machine cannot satisfy the settings; the message is one line.

    Not a ValueError, which the command-line parser would print in a box of several lines.
    """


class OutOfMemory(RuntimeError):
    """The memory is too small even for one trajectory at a time."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Device, precision and memory."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` uses a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision in which models compute; `auto` takes bfloat16 if it is faster on this machine and
    changes no log-probability much. Trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    token_budget: int | None = None
    """Tokens per forward pass; by default 512 on a CPU, on a GPU as many as its memory holds."""

    shard: bool = False
    """Share the weights among the processes (FSDP2), for models that do not fit into the memory of
    one device with gradients and optimizer; nothing changes with a single process."""

    def __post_init__(self) -> None:
        """Raises `ComputeError` for a budget below 1, and for a GPU that is not there."""
        if self.token_budget is not None and self.token_budget < 1:
            raise ComputeError(
                f"--compute.token-budget must be at least 1, not {self.token_budget}"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ComputeError("--compute.device cuda: PyTorch finds no GPU on this machine")

    @property
    def torch_device(self) -> torch.device:
        """The device, with `auto` resolved."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def chosen(self, width: int) -> "Precision":
        """The precision for a model with hidden states of this width, with `auto` resolved."""
        if self.precision != "auto":
            return Precision(self.precision == "bfloat16", "as asked for")
        if self.torch_device.type == "cuda":
            return Precision(True, "since the device is a GPU")
        if width < MIN_HALF_WIDTH:
            return Precision(False, "since the model is too small to gain from bfloat16")
        if not any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_UNITS):
            return Precision(False, "since this processor has no bfloat16 units")
        gain = bfloat16_gain()
        why = f"since its matrix products run {gain:.1f} times as fast in bfloat16 here"
        return Precision(gain >= MIN_GAIN, why)


@dataclass(frozen=True)
class Precision:
    """The precision in which a model computes, and why."""

    is_half: bool
    why: str

    def __str__(self) -> str:
        """For example `float32, since this processor has no bfloat16 units`."""
        return f"{'bfloat16' if self.is_half else 'float32'}, {self.why}"


@cache
def bfloat16_gain() -> float:
    """How many times as fast as in float32 a matrix product is in bfloat16, on this processor.

    Takes a fraction of a second.
    """
    a, b = torch.ones(256, 1024), torch.ones(1024, 1024)
    halves = a.bfloat16(), b.bfloat16()
    taken = fastest({"float32": lambda: a @ b, "bfloat16": lambda: halves[0] @ halves[1]})
    gain = ranks.from_first(taken["float32"] / taken["bfloat16"])
    return gain / onednn_gain() if uses_onednn() else gain


@contextmanager
def beside_environments(width: int) -> Iterator[None]:
    """Within the block PyTorch uses one thread if the model is small.

    Its threads wait for each other actively, which takes a core from environments that run beside
    them, and narrow products gain little from a second thread.
    """
    threads = torch.get_num_threads()
    if width < MIN_HALF_WIDTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def deterministic(seed: int = 0) -> None:
    """Makes PyTorch compute the same numbers in every run on the same machine.

    Call it once, before a model is loaded. Only deterministic kernels are used from then on;
    an operation without one raises RuntimeError. The global generators of `random`, NumPy and
    PyTorch are seeded too, for code of your own: functions of this package take their own `seed`
    and leave the global generators alone.

    Args:
        seed: 0 to 2**32 - 1.

    Raises:
        ValueError: The seed is out of range.

    Example:
        >>> import stepagent
        >>> stepagent.deterministic()
    """
    # Read by CUDA when its first matrix product is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fitting_tokens(free: int, reserved: int, bytes_per_token: float) -> int:
    """How many tokens fit into `free` bytes, of which `reserved` are needed otherwise."""
    room = HEADROOM * free - reserved
    return max(128, min(MAX_TOKEN_BUDGET, int(room / bytes_per_token) // 128 * 128))


def until_all_fit(
    attempt: Callable[[], T], halve: Callable[[], None], *, in_step: bool = False
) -> T:
    """As `until_it_fits`, for a share of common work: if memory runs out anywhere, all halve.

    With `in_step`, the others are still waiting for what failed, so `halve` must raise.
    """
    while True:
        found: T | None = None
        fits = False
        with suppress(torch.OutOfMemoryError):
            found, fits = attempt(), True
        if in_step and not fits:
            halve()
        if ranks.all_of(fits):
            return cast(T, found)
        found = None
        halve()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def until_it_fits(attempt: Callable[[], T], halve: Callable[[], None]) -> T:
    """Returns what `attempt` returns; if memory runs out, calls `halve` and tries again.

    `halve` must reduce the memory that the next attempt needs, or raise `OutOfMemory`.
    """
    while True:
        with suppress(torch.OutOfMemoryError):
            return attempt()
        # Only outside of `suppress` are the tensors of the failed attempt freed.
        halve()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
