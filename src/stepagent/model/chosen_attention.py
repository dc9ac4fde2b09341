"""Attention that the caller of a forward pass chooses, instead of the model's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig


class Attention(Protocol):
    """Attention of new tokens, called by each layer in turn."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """(tokens, heads, width) from queries, keys and values (heads, tokens, width).

        Each head of keys and values serves a group of neighbouring heads of queries. Positions are
        within `window` of each other; `softcap` limits the size of scores.
        """
        ...


_CALLERS_OWN = "stepagent"
"""Name under which transformers finds the attention of `attending_with`."""
_attention: ContextVar[Attention] = ContextVar("attention")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **__: object,
) -> tuple[Tensor, None]:
    """Calls the attention of the present forward pass in the way of transformers."""
    found = _attention.get()(
        module,
        query[0],
        key[0],
        value[0],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return found[None], None


AttentionInterface.register(_CALLERS_OWN, _attend)


@contextmanager
def attending_with(attention: Attention, config: PreTrainedConfig) -> Iterator[None]:
    """Within the block all layers of the model with this config attend through `attention`."""
    own = config._attn_implementation
    config._attn_implementation = _CALLERS_OWN
    token = _attention.set(attention)
    try:
        yield
    finally:
        _attention.reset(token)
        config._attn_implementation = own
