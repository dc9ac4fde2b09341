"""The last layer's MLP, computed for the tokens that are read and no others.

Every layer's attention reads all tokens, but of what comes after the last one only the predictors'
results are used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel


@contextmanager
def last_mlp_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Context in which it gives zeros for all but the tokens at `places` (predictors,).

    Nothing changes in models whose last layer has no plain MLP, or shares it with another layer.
    """
    mlp = _last_mlp(model)
    if mlp is None:
        yield
        return
    forward = mlp.forward

    def at_places(hidden: Tensor) -> Tensor:
        if hidden.dim() != 3:
            return cast(Tensor, forward(hidden))
        found = forward(hidden[:, places])
        return torch.zeros_like(hidden).index_copy(1, places, found)

    mlp.forward = at_places
    try:
        yield
    finally:
        del mlp.forward


def _last_mlp(model: PreTrainedModel) -> Any:
    layers = list(getattr(model.get_decoder(), "layers", ()))
    mlps = [getattr(layer, "mlp", None) for layer in layers]
    mlp = mlps.pop() if mlps else None
    # MLPs that route tokens have other names.
    is_plain = type(mlp).__name__.endswith("MLP") and mlp not in mlps
    return mlp if is_plain else None
