"""Sharded weights (FSDP2): each process holds a part of every decoder layer.

A layer is gathered for its forward and its backward pass and given up again, so a model can be
larger than the memory of one device. Embeddings, output head, last norm and adapters are in no
decoder layer; each process holds them whole, and `ranks` sums their gradients as it does without
sharding.

Two traps shape this module. Every process must make as many forward and backward passes as the
others, in the same order, or all wait for ever: `packs.own_packs` fills up with idle passes. And
sampling makes as many as its actions are long, so for practice the layers stay gathered (`whole`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from stepagent.model.weights import WeightsError, place
from stepagent.processes import ranks


def shard(
    model: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype,
    replicated: Iterable[nn.Parameter],
) -> None:
    """Shards the decoder layers of a model over all processes, in place, and moves it to a device.

    `replicated` are parameters within the layers that every process keeps whole. Layers compute in
    the precision `dtype`; gradients are summed in at least float32. Raises `WeightsError` if the
    model does not keep its layers in a list of its decoder.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise WeightsError(
            f"{place(model.name_or_path or 'model')}: --compute.shard: expected a decoder with a "
            f"list of layers, not {type(decoder).__name__}"
        )
    mesh = DeviceMesh.from_group(ranks.group(), device.type)
    kept = set(replicated) | {
        p for p in layers.parameters() if not p.requires_grad and p.dtype != dtype
    }
    # Inputs are in the model's precision already; a cast would lose the blocks of a `TreeMask`.
    precision = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.promote_types(dtype, torch.float32),
        cast_forward_inputs=False,
    )
    for layer in layers:
        part = fully_shard(layer, mesh=mesh, mp_policy=precision, ignored_params=kept)
        # FSDP averages gradients by default; the losses are parts of a sum.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    # A root that holds no weights: with it each layer is gathered while the one before it computes.
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()))
    model.to(device)  # type: ignore[arg-type]


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on a model."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within the block every process holds all layers whole and computes by itself.

    All processes must enter it together. Does nothing for a model that is not sharded.
    """
    layers = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
        layer.unshard()
    yield
    for layer in layers:
        layer.set_reshard_after_forward(True, recurse=False)
        layer.reshard()


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies all weights to a model of the same kind that is sharded in the same way."""
    with torch.no_grad():
        for own, other in zip(target.parameters(), source.parameters(), strict=True):
            local(own).copy_(local(other))


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, whole; none in other processes than the first.

    All must call it.
    """
    found = dict[str, Tensor]()
    for name, value in model.state_dict().items():
        # One after another, and off the device: together they may not fit.
        tensor = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        if ranks.is_first():
            found[name] = tensor
    return found


def as_sharded(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights by name, sharded as the model's own are, to be loaded into it."""
    own = model.state_dict()
    return {
        name: _like(own[name], value) if name in own else value for name, value in tensors.items()
    }


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together, sharded ones included; the same in all processes."""
    parts = [t for t in tensors if isinstance(t, DTensor)]
    kept = [t for t in tensors if not isinstance(t, DTensor)]
    if not parts:
        return nn.utils.get_total_norm(kept)
    of_parts = nn.utils.get_total_norm(parts)
    assert isinstance(of_parts, DTensor)
    norm = of_parts.full_tensor()
    return torch.hypot(norm, nn.utils.get_total_norm(kept).to(norm))


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(own: Tensor, tensor: Tensor) -> Tensor:
    if not isinstance(own, DTensor) or own.shape != tensor.shape:
        return tensor
    return distribute_tensor(
        tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None
    )
