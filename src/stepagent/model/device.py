"""Device, precision, deterministic numbers, and how many tokens fit into memory at once."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

CPU_TOKEN_BUDGET = 512
"""Longer rows spend more on attention between trees than they save by sharing a forward pass."""
MAX_TOKEN_BUDGET = 16384
"""Memory of a dense mask grows with its square; longer rows make no better use of a GPU."""
HEADROOM = 0.8
"""Share of the free memory that is used; the allocator loses some to fragmentation."""


T = TypeVar("T")


class ComputeError(RuntimeError):
    """This machine cannot satisfy the settings; the message is one line.

    Not a ValueError, which the command-line parser would print in a box of several lines.
    """


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Device, precision and memory."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` uses a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; `auto`: bfloat16 on a GPU. Trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    token_budget: int | None = None
    """Tokens per forward pass; by default 512 on a CPU, on a GPU as many as its memory holds."""

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

    @property
    def is_half(self) -> bool:
        """Whether matrix products are in bfloat16, with `auto` resolved."""
        if self.precision == "auto":
            return self.torch_device.type == "cuda"
        return self.precision == "bfloat16"


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
