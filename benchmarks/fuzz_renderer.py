"""Fuzz cases for the renderer: exactly the trajectory's texts are trained, and none forges a turn.

The checks do not depend on how rendering works. They decode the ids: every action, name, argument
and thought must be in the trained tokens, and every observation in the state. A second trajectory
of the same form with harmless texts must have the same control tokens in the same places. And each
history must be a prefix of the dialogue as the template itself renders it.
"""

import html
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fuzz_inputs import Loss, check_found, trajectory
from fuzz_templates import FAMILIES, template, tokenizer

from stepagent.rendering.renderer import RenderedTrajectory, Renderer
from stepagent.types import Step, Trajectory


def render(rng: random.Random, folder: Path) -> None:
    """Renders a trajectory without tools."""
    _render(rng, tools=False)


def render_tools(rng: random.Random, folder: Path) -> None:
    """Renders a trajectory whose actions call tools."""
    _render(rng, tools=True)


def _render(rng: random.Random, *, tools: bool) -> None:
    family = rng.choice(FAMILIES)
    own = tokenizer(rng, family, template(rng, family))
    said = trajectory(rng, tools=tools)
    found = Renderer(own).render(said)
    for step, ids in zip(said.steps, found.actions, strict=True):
        check_trained(own, step, ids, is_call=bool(tools))
    check_states(own, found)
    check_control(own, found)
    if not tools:
        check_history(own, found)


def check_trained(own: Any, step: Step, ids: Sequence[int], *, is_call: bool) -> None:
    """Checks that every text of a step is in its trained tokens."""
    text = plain(own, decoded(own, ids))
    for part in [step.thought, *(texts_of_call(step.action) if is_call else [step.action])]:
        forms = {plain(own, form) for form in written_forms(part)}
        if not any(form in text for form in forms):
            raise Loss(f"{part!r} of {step.action!r} is not trained; that is {text!r}")


def texts_of_call(action: str) -> list[str]:
    """Name, keys and values of a call, or else the action itself."""
    try:
        found = json.loads(action)
    except ValueError:
        return [action]
    if not isinstance(found, dict) or set(found) != {"name", "arguments"}:
        return [action]
    return [found["name"], *leaves(found["arguments"])]


def leaves(value: Any) -> Iterator[str]:
    """All texts and numbers of a JSON value, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value)


def written_forms(part: str) -> Iterator[str]:
    """Forms in which a template may write a text: unchanged, or escaped in various ways."""
    as_json = json.dumps(part)[1:-1]
    yield part
    yield as_json
    yield json.dumps(part, ensure_ascii=False)[1:-1]
    yield repr(part)[1:-1]
    yield html.escape(part)
    yield {"true": "True", "false": "False"}.get(part, part)
    for mark, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("'", "\\u0027")):
        as_json = as_json.replace(mark, escape)
    yield as_json


def check_states(own: Any, found: RenderedTrajectory) -> None:
    """Checks that instruction and observation are in the state before an action."""
    said = found.trajectory
    for step, state in zip(said.steps, found.states, strict=True):
        text = plain(own, decoded(own, state))
        for part in (said.instruction, step.observation):
            if is_known(own, part) and plain(own, part) not in text:
                raise Loss(f"{part!r} is not in the state {text!r}")
            check_found(part, text, "the state")


def check_control(own: Any, found: RenderedTrajectory) -> None:
    """Checks that texts write no control tokens, against a harmless trajectory of the same form."""
    renderer, calm = Renderer(own), disarmed(found.trajectory)
    if found.has_text_form:
        harmless = renderer.in_text_form(calm.tools)._render(calm)
    else:
        harmless = renderer.render(calm)
    control = {
        number
        for token, number in own.added_tokens_encoder.items()
        if token.strip() and token != own.unk_token
    }
    for name, mine, theirs in (
        ("what is read", found.additions, harmless.additions),
        ("what is trained", found.actions, harmless.actions),
    ):
        for place, (ids, others) in enumerate(zip(mine, theirs, strict=True)):
            forged, meant = ([i for i in each if i in control] for each in (ids, others))
            if forged != meant:
                forged_tokens, meant_tokens = map(own.convert_ids_to_tokens, (forged, meant))
                raise Loss(
                    f"{name} at {place} has {forged_tokens} for {meant_tokens}: "
                    f"{found.trajectory.model_dump_json()[:500]}"
                )


def disarmed(said: Trajectory) -> Trajectory:
    """The trajectory with every text that is not empty replaced by a harmless one."""

    def harmless(value: Any, number: int = 0) -> Any:
        if isinstance(value, dict):
            return {f"k{i}": harmless(inner, i) for i, inner in enumerate(value.values())}
        if isinstance(value, list):
            return [harmless(inner) for inner in value]
        return "ok" if isinstance(value, str) and value.strip() else value

    def action(text: str) -> str:
        if texts_of_call(text) == [text]:
            return "ok"
        arguments = harmless(json.loads(text)["arguments"])
        return json.dumps({"name": "ok", "arguments": arguments}, separators=(",", ":"))

    def tool(schema: dict[str, Any]) -> dict[str, Any]:
        function = schema["function"]
        parameters = {
            "type": "object",
            "properties": harmless(function["parameters"]["properties"]),
        }
        known = {"name": "ok", "description": "ok", "parameters": parameters}
        return {"type": "function", "function": known}

    steps = tuple(
        step.model_copy(
            update={
                "observation": harmless(step.observation),
                "thought": harmless(step.thought),
                "action": action(step.action),
            }
        )
        for step in said.steps
    )
    tools = tuple(tool(schema) for schema in said.tools)
    return said.model_copy(update={"instruction": "ok", "steps": steps, "tools": tools})


def check_history(own: Any, found: RenderedTrajectory) -> None:
    """Checks that each history starts the template's rendering, up to white space."""
    said = found.trajectory
    # A template may drop parts of a text, such as thinking; the renderer never does.
    if any(not is_known(own, text) or "</think>" in text for text in texts_of(said)):
        return
    history: list[int] = []
    messages: list[dict[str, str]] = []
    for place, (step, added) in enumerate(zip(said.steps, found.additions, strict=True)):
        seen = step.observation if place else f"{said.instruction}\n\n{step.observation}"
        messages.append({"role": "user", "content": seen})
        written = own.apply_chat_template(messages, tokenize=False, enable_thinking=False)
        history += added
        if "<unk>" in decoded(own, own(written, add_special_tokens=False)["input_ids"]):
            return  # the template's own text has characters that the vocabulary lacks
        mine, theirs = plain(own, decoded(own, history)), plain(own, written)
        if not theirs.startswith(mine):
            raise Loss(f"the history {mine!r} does not begin the template's {theirs!r}")
        text = f"Thought: {step.thought}\nAction: {step.action}" if step.thought else step.action
        messages.append({"role": "assistant", "content": text})


def texts_of(said: Trajectory) -> Iterator[str]:
    """All texts of a trajectory."""
    yield said.instruction
    for step in said.steps:
        yield from (step.observation, step.thought, step.action)


def is_known(own: Any, text: str) -> bool:
    """Whether the vocabulary covers the whole text."""
    ids = own(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return plain(own, decoded(own, ids)) == plain(own, text)


def decoded(own: Any, ids: Sequence[int]) -> str:
    """The text of ids, control tokens included."""
    return str(own.decode(list(ids), skip_special_tokens=False))


def plain(own: Any, text: str) -> str:
    """A text after the tokenizer's normalizer, without white space."""
    normalizer = own.backend_tokenizer.normalizer
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    # SentencePiece writes spaces as underscores and treats both alike.
    return "".join(c for c in text if not c.isspace() and c != "\N{LOWER ONE EIGHTH BLOCK}")
