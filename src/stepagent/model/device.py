"""Device, precision, and how many tokens fit into memory at once."""

from dataclasses import dataclass
from typing import Literal

import torch

CPU_TOKEN_BUDGET = 512
"""Longer rows spend more on attention between trees than they save by sharing a forward pass."""
MAX_TOKEN_BUDGET = 16384
"""Memory of a dense mask grows with its square; longer rows make no better use of a GPU."""
HEADROOM = 0.8
"""Share of the free memory that is used; the allocator loses some to fragmentation."""


class ComputeError(ValueError):
    """This machine cannot satisfy the settings; the message is one line."""


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


def fitting_tokens(free: int, reserved: int, bytes_per_token: float) -> int:
    """How many tokens fit into `free` bytes, of which `reserved` are needed otherwise."""
    room = HEADROOM * free - reserved
    return max(128, min(MAX_TOKEN_BUDGET, int(room / bytes_per_token) // 128 * 128))
