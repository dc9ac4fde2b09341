"""GPUs by their data sheets, for plans that are made elsewhere."""

from dataclasses import dataclass

LAYER_SECONDS = 1e-4
"""Assumed for a layer of a decoding step: the time in which its kernels are started."""
SHARE = 0.35
"""Assumed share of the peak that training reaches; on a CPU 0.36 to 0.48 were measured."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    flops: float
    """Peak of products in bfloat16 without sparsity, per second."""
    bandwidth: float
    """Of its memory, in bytes per second."""
    memory: float
    """In bytes."""
    link: float
    """Bandwidth to its neighbours in one machine, in bytes per second and direction."""
    share: float = SHARE
    layer_seconds: float = LAYER_SECONDS


GPUS = {
    "A100": Gpu(312e12, 2.04e12, 80e9, 300e9),
    "H100": Gpu(989e12, 3.35e12, 80e9, 450e9),
    "H200": Gpu(989e12, 4.8e12, 141e9, 450e9),
    "L40S": Gpu(362e12, 0.864e12, 48e9, 32e9),
}
"""NVIDIA's data sheets: A100 and H100 of 80 GB and H200, all SXM; L40S over PCIe."""
