"""The clock, peak memory, facts of the machine, and the check that both sides compute the same."""

import math
import multiprocessing
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

import numpy as np
import torch
import transformers
from datasets import disable_progress_bars
from torch import nn

from stepagent.model.products import use_faster_products

P = ParamSpec("P")
T = TypeVar("T")

Row = dict[str, object]
"""A line of a table by column; lists and dictionaries are only in the JSON."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm's bf16"}
"""Units for products in bfloat16 by PyTorch's names, the fastest first."""

LOSS_TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}
"""Largest difference of two losses: sums in another order diverge after an update."""
TIE_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.5}
"""Two greedy tokens may differ if their log-probabilities are this close (nats)."""

_PROCESSES = multiprocessing.get_context("forkserver")
# Children are forked from a process that has imported all of this, so they start at once, and the
# libraries take the same memory on both sides.
_PROCESSES.set_forkserver_preload(
    [
        "stepagent.experiment.run",
        "peft",
        "datasets",
        "trl.trainer.dpo_trainer",
        "trl.trainer.sft_trainer",
    ]
)


class Unequal(AssertionError):
    """The two sides do not compute the same, so their times cannot be compared."""


def check_close(
    what: str, ours: Sequence[float], theirs: Sequence[float], tolerance: float
) -> float:
    """The largest difference; raises `Unequal` if it exceeds the tolerance."""
    if len(ours) != len(theirs):
        raise Unequal(f"{what}: {len(ours)} values of ours, {len(theirs)} of theirs")
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    if not all(difference <= tolerance for difference in differences):  # NaN is not
        raise Unequal(f"{what}: {ours} and {theirs} differ by more than {tolerance:g}")
    return max(differences)


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the function in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=_PROCESSES, initializer=be_quiet) as process:
        return process.submit(function, *args, **kwargs).result()


def be_quiet() -> None:
    """Only tables are printed: no progress of loading, no hints of other libraries."""
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def forget_peak() -> float:
    """Begins a new peak, where the system can; returns the memory that is taken now, in MB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """Largest resident memory of this process since `forget_peak`.

    Not by `getrusage` where there is `/proc`: its figure includes the process that was forked.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def in_turn(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each side returns, one after the other, `repeats` times.

    A change of the machine's speed during the run so affects all of them.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            found[name].append(run())
    return found


def best_of(choices: Sequence[int], seconds_with: Callable[[int], float]) -> int:
    """The choice that takes least time."""
    return min(choices, key=seconds_with)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """How many times as much theirs is, in medians; None if ours is nothing."""
    return round(median(theirs) / median(ours), 2) if median(ours) else None


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The slope of the least-squares line in log-log: 1 is linear; None for fewer than 3 points."""
    if len(sizes) < 3:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of the fastest of ten large matrix products.

    By the library that the policies use.
    """
    size = 8192 if device.type == "cuda" else 2048
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    use_faster_products(layer)
    rows = torch.randn(size, size, device=device, dtype=dtype)
    with torch.inference_mode():
        return 2 * size**3 / min(seconds(lambda: layer(rows)) for _ in range(10))


def bfloat16_units() -> str:
    """The processor's fastest units for products in bfloat16."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    has = torch.cpu.get_capabilities()
    return next((name for flag, name in UNITS.items() if has.get(flag)), "neither")


def machine() -> Row:
    """What the figures depend on beside the code."""
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.machine()),
        "bfloat16_units": bfloat16_units(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def show(title: str, rows: Iterator[Row]) -> list[Row]:
    """Prints the rows as a table, each as soon as it is measured; returns them."""
    print(f"\n{title}")
    found: list[Row] = []
    widths: dict[str, int] = {}
    for row in rows:
        cells = {k: _cell(v) for k, v in row.items() if not isinstance(v, list | dict)}
        if cells.keys() != widths.keys():
            widths = {name: max(len(name), len(text), 7) for name, text in cells.items()}
            print("  ".join(f"{name:>{width}}" for name, width in widths.items()))
        print("  ".join(f"{cells[name]:>{width}}" for name, width in widths.items()), flush=True)
        found.append(row)
    return found


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
