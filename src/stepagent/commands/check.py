"""`stepagent check`: shows what a model would read and learn from a file of trajectories."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from stepagent.commands.models import open_renderer, prepare
from stepagent.commands.parsing import check_at_least_one, run_command
from stepagent.console.printable import printable
from stepagent.console.progress import track
from stepagent.formats.import_export import read_foreign
from stepagent.rendering.actions import read_call, same_action
from stepagent.rendering.chat_template import TemplateError
from stepagent.rendering.renderer import RenderedTrajectory, Renderer
from stepagent.types import Trajectory

STYLES = {"prompt": "dim", "train": "bold green"}
CONTROL_STYLE = "magenta"
MAX_LISTED = 10
"""Faults that are listed one by one; the rest is counted."""


@dataclass
class _Found:
    """Counts over all trajectories of a file, and what is wrong with it."""

    tokens: int = 0
    trained: int = 0
    longest: int = 0
    steps: int = 0
    thoughts: int = 0
    calls: int = 0
    with_tools: int = 0
    as_text: int = 0
    """Trajectories whose tools and calls are written as text."""
    too_long: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def check(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    /,
    *,
    model: str,
    show: int = 2,
    format: str | None = None,
    skip_invalid: bool = False,
) -> None:
    """Shows what a model would read and learn from a file, before anything is trained.

    Reads FILE and the tokenizer of MODEL; loads no weights and writes nothing. Renders every
    trajectory with the model's chat template and prints the first ones, with prompt, trained text
    and control tokens in different colours. A summary then says how the template handles thoughts,
    tools and system messages, and what cannot be used. The exit code is 1 if a part of a trajectory
    is lost in tokenization, or if a trajectory is longer than the model's context.

    For example: stepagent check demonstrations.jsonl --model Qwen/Qwen3-0.6B

    Args:
        file: Trajectories, in any format that `stepagent import` reads.
        model: A model folder, a GGUF file, or the id of a model on the Hugging Face hub.
        show: How many trajectories to print.
        format: The file's format; by default it is detected. See `stepagent import --help`.
        skip_invalid: Skip and count records that cannot be read, instead of stopping at the first.
    """
    check_at_least_one("--show", show)
    prepare()
    read = read_foreign(file, format=format, skip_invalid=skip_invalid)
    renderer, context = open_renderer(model)
    console = Console(highlight=False, soft_wrap=True)
    found = _Found()
    for number, trajectory in enumerate(track(read.trajectories, "Check")):
        rendered = _examined(renderer, trajectory, context, found)
        if rendered is not None and number < show:
            _print_trajectory(console, renderer, rendered, context)
    _print_summary(console, renderer, found, read.rejected, context)
    if found.lost or found.too_long:
        sys.exit(1)


def _examined(
    renderer: Renderer, trajectory: Trajectory, context: int, found: _Found
) -> RenderedTrajectory | None:
    """Renders a trajectory and adds it to the counts; None if it cannot be rendered."""
    steps = trajectory.steps
    found.steps += len(steps)
    found.thoughts += sum(bool(step.thought) for step in steps)
    found.calls += sum(bool(trajectory.tools) and read_call(s.action) is not None for s in steps)
    try:
        rendered = renderer.render(trajectory)
    except TemplateError as error:
        found.lost.append(str(error))
        return None
    found.tokens += rendered.num_tokens
    found.with_tools += bool(trajectory.tools)
    found.trained += sum(map(len, rendered.actions))
    found.longest = max(found.longest, rendered.num_tokens)
    found.as_text += rendered.has_text_form
    name = printable(trajectory.id)
    if rendered.num_tokens > context:
        found.too_long.append(f"{name}: {rendered.num_tokens} tokens")
    found.lost += [f"{name}: {loss}" for loss in _losses(renderer, rendered)]
    return rendered


def _losses(renderer: Renderer, rendered: RenderedTrajectory) -> Iterator[str]:
    """Describes every text of a trajectory that cannot be read back from its token ids."""
    trajectory = rendered.trajectory
    own = renderer.of(rendered)
    for number, (step, seen, ids) in enumerate(
        zip(trajectory.steps, rendered.additions, rendered.actions, strict=True)
    ):
        read = own.text(seen)
        texts = {"observation": step.observation} | (
            {} if number else {"instruction": trajectory.instruction}
        )
        for what, text in texts.items():
            if text.strip() not in read:
                yield f"step {number + 1}: the tokenizer changes the {what} '{printable(text)}'"
        said = own.parse(ids)
        if said.thought != step.thought.strip() or not same_action(said.action, step.action):
            yield (
                f"step {number + 1}: the action '{printable(step.action)}' is read back as "
                f"'{printable(said.action)}'"
            )


def _print_trajectory(
    console: Console, renderer: Renderer, rendered: RenderedTrajectory, context: int
) -> None:
    """Prints all text of a trajectory, the trained part in another colour."""
    trained = sum(map(len, rendered.actions))
    console.print(
        f"{printable(rendered.trajectory.id)}: {len(rendered.actions)} steps, "
        f"{rendered.num_tokens} of {context} tokens, {trained} of them trained",
        style="bold",
        markup=False,
    )
    repeated = 0
    for seen, ids in zip(rendered.additions, rendered.actions, strict=True):
        # Each addition begins with the previous action, which was already shown as trained.
        _print_part(console, "prompt", renderer.parts((*seen[repeated:], *rendered.ask)))
        _print_part(console, "train", renderer.parts(ids))
        repeated = len(renderer.past(ids))
    console.print()


def _print_part(console: Console, kind: str, parts: Iterable[tuple[str, bool]]) -> None:
    """Prints a part of the dialogue; control tokens have a colour that no text can imitate."""
    shown = Text()
    for text, is_control in parts:
        # Text from files must not contain terminal escape sequences.
        safe = "\n".join(printable(line, limit=10_000) for line in text.split("\n"))
        shown.append(safe, style=CONTROL_STYLE if is_control else STYLES[kind])
    for number, line in enumerate(shown.split("\n", allow_blank=True)):
        console.print(Text(f"{kind if number == 0 else '':>6} │ ") + line)


def _print_summary(
    console: Console,
    renderer: Renderer,
    found: _Found,
    rejected: dict[str, list[int]],
    context: int,
) -> None:
    """Prints what the template does, and what cannot be used."""
    lines = {
        "tokens": f"{found.tokens}, {found.trained} of them trained; the longest trajectory has "
        f"{found.longest}, the model's context is {context}",
        "turns": "marked by plain text, which an observation can imitate"
        if renderer.marks_are_text
        else "marked by control tokens, which no text can imitate",
        "history": "each state is a prefix of the next, so all tokens are shared"
        if renderer.is_stable
        else "the template rewrites earlier turns, so states share fewer tokens (slower training)",
        "thoughts": f"in {found.thoughts} of {found.steps} steps"
        + (", written before the action and trained with it" if found.thoughts else ""),
        "tools": _tools(found),
        "system": "no separate role: system text is the start of the instruction, in the first "
        "user turn",
        "cut": "nothing"
        if not found.too_long
        else f"nothing, but {len(found.too_long)} trajectories are longer than the context and "
        "cannot be used",
        "lost": "nothing" if not found.lost else f"{len(found.lost)} parts of trajectories",
    }
    for title, text in lines.items():
        console.print(f"{title:<9} {text}", markup=False)
    for reason, places in rejected.items():
        console.print(f"left out: {len(places)} x {reason}", markup=False)
    for fault in [*found.lost, *found.too_long][:MAX_LISTED]:
        console.print(f"  {fault}", style="bold red", markup=False)
    if (more := len(found.lost) + len(found.too_long) - MAX_LISTED) > 0:
        console.print(f"  and {more} more", style="bold red")


def _tools(found: _Found) -> str:
    if not found.with_tools:
        return "none"
    how = {0: "in the template's format", found.with_tools: "as plain text"}.get(
        found.as_text,
        f"in the template's format, in {found.as_text} trajectories as plain text",
    )
    return f"in {found.with_tools} trajectories, {found.calls} calls; written {how}"


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(check, "check", args)
