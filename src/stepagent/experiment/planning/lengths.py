"""Number and lengths of real demonstrations, for a plan."""

from collections.abc import Sequence
from dataclasses import replace

from stepagent.experiment.planning.work import Data
from stepagent.model.policy import open_tokenizer
from stepagent.rendering.renderer import Renderer
from stepagent.types import Trajectory

MEASURED = 200
"""Demonstrations that are rendered; the first ones stand for all."""
CHARACTERS = 4
"""Of a token, if there is no tokenizer."""


def data_of(trajectories: Sequence[Trajectory], model: str | None, assumed: Data) -> Data:
    """The data that these demonstrations are, in tokens of the model if there is one.

    What is held out is as assumed. Raises `PolicyError` and `TemplateError` as `Renderer` does.
    """
    some = trajectories[:MEASURED]
    steps = sum(len(t.steps) for t in some)
    if model:
        renderer = Renderer(open_tokenizer(model, model))
        rendered = [renderer.render(t) for t in some]
        tokens = sum(r.num_tokens for r in rendered)
        actions = sum(len(action) for r in rendered for action in r.actions)
    else:
        said = [(len(s.observation), len(s.thought) + len(s.action)) for t in some for s in t.steps]
        actions = sum(own for _, own in said) // CHARACTERS
        told = sum(len(t.instruction) for t in some) + sum(seen for seen, _ in said)
        tokens = told // CHARACTERS + actions
    return replace(
        assumed,
        demonstrations=len(trajectories),
        steps=round(steps / len(some)),
        tokens=round(tokens / len(some)),
        action_tokens=max(1, round(actions / steps)),
    )
