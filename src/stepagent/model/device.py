"""Where a model computes, in which precision, and how many tokens fit into memory at once."""

from dataclasses import dataclass
from typing import Literal

import torch

CPU_TOKEN_BUDGET = 512
"""Longer rows compute more attention between trees than sharing a pass saves."""
MAX_TOKEN_BUDGET = 16384
"""Masks are made from dense ones of this length, squared; more does not keep a GPU any busier."""
HEADROOM = 0.8
"""Share of the free memory that is planned with; allocators lose some of it in fragments."""


class ComputeError(ValueError):
    """Settings that this machine cannot follow; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Device, precision and memory."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; `auto` is bfloat16 on a GPU. Trained weights stay in float32."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass and compute it again: slower, with less memory."""
    token_budget: int | None = None
    """Tokens forwarded together; by default 512 on a CPU, on a GPU what its memory holds."""

    def __post_init__(self) -> None:
        """Raises `ComputeError` for what cannot be."""
        if self.token_budget is not None and self.token_budget < 1:
            raise ComputeError(
                f"--compute.token-budget must be at least 1, not {self.token_budget}"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ComputeError("--compute.device cuda: PyTorch finds no GPU here")

    @property
    def torch_device(self) -> torch.device:
        """The device that is meant."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def is_half(self) -> bool:
        """Whether matrix products are in bfloat16."""
        if self.precision == "auto":
            return self.torch_device.type == "cuda"
        return self.precision == "bfloat16"


def fitting_tokens(free: int, reserved: int, bytes_per_token: float) -> int:
    """How many tokens fit into `free` bytes, of which `reserved` are needed for something else."""
    room = HEADROOM * free - reserved
    return max(128, min(MAX_TOKEN_BUDGET, int(room / bytes_per_token) // 128 * 128))
