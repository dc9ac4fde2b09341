"""Evaluates the paths of a pack: log-probabilities, entropies, hidden states."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stepagent.model.forward import Layers
from stepagent.model.prefix_tree import Pack

MAX_LOGITS = 2**26
"""Most logits in memory at once (256 MB in float32), however many tokens are evaluated."""


@dataclass(frozen=True)
class Reading:
    """Log-probabilities and hidden states for the paths of a pack."""

    logprobs: Tensor
    """(targets,) log-probability of each path token given its prefix, in nats."""
    state_hidden: Tensor
    """(paths, width) hidden state at the last token before each path."""


def read(layers: Layers, pack: Pack) -> Reading:
    """Evaluates all paths of a pack, with one forward pass for each row."""
    hidden = layers.hidden(pack)
    (logprobs,) = _in_parts(layers, pack, hidden, _chosen)
    return Reading(logprobs, hidden[pack.path_state].to(layers.dtype))


def read_with_entropies(layers: Layers, pack: Pack) -> tuple[Reading, Tensor]:
    """As `read`, and the entropy (targets,) of the distribution of each path token, in nats."""
    hidden = layers.hidden(pack)
    logprobs, entropies = _in_parts(layers, pack, hidden, _chosen_and_entropies)
    return Reading(logprobs, hidden[pack.path_state].to(layers.dtype)), entropies


def _chosen(logprobs: Tensor, predictor: Tensor, ids: Tensor) -> tuple[Tensor]:
    return (logprobs[predictor, ids],)


def _chosen_and_entropies(
    logprobs: Tensor, predictor: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor]:
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs[predictor, ids], entropies[predictor]


def _in_parts(
    layers: Layers,
    pack: Pack,
    hidden: Tensor,
    evaluate: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Evaluates path tokens from the hidden states of the predictors (predictors, width).

    `evaluate` maps normalized logits (predictors, vocabulary), and for each of their tokens its
    predictor and id, to values of the tokens.
    """
    size = max(1, MAX_LOGITS // layers.config.vocab_size)

    def of_part(part: Tensor, predictor: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return evaluate(torch.log_softmax(layers.logits(part), dim=-1), predictor, ids)

    if len(hidden) <= size:
        return of_part(hidden, pack.target_predictor, pack.target_ids)
    order = torch.argsort(pack.target_predictor, stable=True)
    predictor, ids = pack.target_predictor[order], pack.target_ids[order]
    parts = []
    for start in range(0, len(hidden), size):
        bounds = torch.searchsorted(predictor, predictor.new_tensor([start, start + size]))
        own = slice(*bounds.tolist())
        # Logits are recomputed in the backward pass, so that one part is held at a time.
        parts.append(
            checkpoint(
                of_part, hidden[start : start + size], predictor[own] - start, ids[own],
                use_reentrant=False,
            )
        )  # fmt: skip
    back = torch.argsort(order)
    return tuple(torch.cat(part)[back] for part in zip(*parts, strict=True))
