"""One forward pass of a Hugging Face causal language model over a row of the prefix tree."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepagent.prefix_tree import Pack, Row


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part of a causal language model below its output head."""
    return cast(nn.Module, model.get_decoder())


def row_hidden(layers: nn.Module, row: Row) -> Tensor:
    """(length, width) final hidden states of a row."""
    # Without a branch the model's own causal mask is the same and lets SDPA skip building one.
    mask = None if row.is_sequence else row.mask()
    output = layers(
        input_ids=row.token_ids[None],
        position_ids=row.positions[None],
        attention_mask=mask,
        use_cache=False,
    )
    return cast(Tensor, output.last_hidden_state[0])


def pack_hidden(layers: nn.Module, pack: Pack) -> tuple[Tensor, Tensor]:
    """Hidden states of all tokens (tokens, width), and of the predictors (predictors, width)."""
    by_row = [row_hidden(layers, row) for row in pack.rows]
    predictors = [hidden[row.predictors] for hidden, row in zip(by_row, pack.rows, strict=True)]
    return torch.cat(by_row), torch.cat(predictors)


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """(..., vocabulary) next-token logits in at least float32."""
    head = cast(nn.Module, model.get_output_embeddings())
    logits = cast(Tensor, head(hidden))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
