"""Demonstrations of one's own: read from a file in any format, cleaned, and split.

Which trajectories are held out depends on their content alone, never on their order in the file or
on its name: records without an id are numbered by line, so ids would not do. Demonstrations of the
same item (`12` and `12#2`) stay on the same side, and equal trajectories are used once.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepagent.console.printable import printable
from stepagent.formats.import_export import read_foreign
from stepagent.rendering.chat_template import TemplateError
from stepagent.rendering.renderer import RenderedTrajectory, Renderer
from stepagent.types import Trajectory

_NUMBERED = re.compile(r"#\d+$")
"""What `read_foreign` appends to an id that it has seen before."""


class OwnDataError(ValueError):
    """Demonstrations cannot be trained on as asked; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """Demonstrations to train on, held-out ones, and what was left out of the files."""

    demonstrations: tuple[Trajectory, ...]
    held_out: tuple[Trajectory, ...]
    left_out: dict[str, int]
    """Number of unused trajectories by reason."""
    longest_action: int
    """Tokens of the expert's longest action, its thought and end-of-turn token included."""
    without_item: int = 0
    """Demonstrations that belong to no item of the environment, if there is one."""


OpenRenderer = Callable[[Sequence[Trajectory]], tuple[Renderer, int]]
"""The renderer of a model and its context in tokens; a model from scratch makes its tokenizer of
the trajectories."""


def read_own_data(
    demonstrations: Path,
    held_out: Path | None,
    open_renderer: OpenRenderer,
    *,
    share: float = 0.2,
) -> OwnData:
    """The expert's trajectories from one or two files in any format that `stepagent import` reads.

    Without a file of held-out trajectories, `share` of the demonstrations is held out. Trajectories
    that do not fit into the context, or that the chat template cannot write, are left out. Raises
    `TrajectoryError` if a record cannot be read, `OwnDataError` if nothing is left to train on or
    to hold out.
    """
    if held_out is None and not 0 < share < 1:
        raise OwnDataError(f"--held-out-share {share:g}: expected a share between 0 and 1")
    if held_out is not None:
        _refuse_same_file(demonstrations, held_out)
    read = {
        _shown(file): read_foreign(file).trajectories
        for file in (demonstrations, held_out)
        if file is not None
    }
    return own_data(read, open_renderer, share=share)


def own_data(
    given: Mapping[str, Sequence[Trajectory]], open_renderer: OpenRenderer, *, share: float = 0.2
) -> OwnData:
    """Demonstrations, and held-out trajectories if there are two lists, by where they come from.

    Cleans and splits them as `read_own_data` does, and raises what it raises.
    """
    left_out: dict[str, int] = {}
    usable = {place: _usable(place, found, left_out) for place, found in given.items()}
    renderer, context = open_renderer([t for own in usable.values() for t in own])
    longest, fitting = 0, dict[str, list[Trajectory]]()
    for place, trajectories in usable.items():
        rendered = _fitting(place, trajectories, renderer, context, left_out)
        fitting[place] = [r.trajectory for r in rendered]
        longest = max(longest, *(len(action) for r in rendered for action in r.actions))
    demonstrations, *held_out = fitting
    own = fitting[demonstrations]
    if held_out:
        other = fitting[held_out[0]]
        own = _without_held_out(own, other, demonstrations, held_out[0], left_out)
    elif len(_items(own)) < 2:
        raise OwnDataError(
            f"{demonstrations}: {_counted(own)} of one item; expected at least 2 items, since one "
            "is held out to choose the best round; add demonstrations, or name other trajectories "
            "to hold out (--held-out)"
        )
    else:
        own, other = split_by_content(own, share)
    return OwnData(
        demonstrations=tuple(own),
        held_out=tuple(other),
        left_out=left_out,
        longest_action=longest,
    )


def split_by_content(
    trajectories: Sequence[Trajectory], share: float
) -> tuple[list[Trajectory], list[Trajectory]]:
    """The trajectories to train on and the held-out ones, each in the order given.

    Whole items are drawn in the order of a hash of their content, up to `share` of the
    trajectories, or the smallest item if none is that small. There have to be two items.
    """
    items = _items(trajectories)
    hashes = {item: min(map(content_hash, own)) for item, own in items.items()}
    order = sorted(items, key=hashes.__getitem__)
    wanted = min(max(1, round(share * len(trajectories))), len(trajectories) - 1)
    chosen, count = set[str](), 0
    for item in order:
        if count + len(items[item]) <= wanted:
            chosen.add(item)
            count += len(items[item])
    chosen = chosen or {min(order, key=lambda item: len(items[item]))}
    held_out = {id(t) for item in chosen for t in items[item]}
    return (
        [t for t in trajectories if id(t) not in held_out],
        [t for t in trajectories if id(t) in held_out],
    )


def content_hash(trajectory: Trajectory) -> str:
    """SHA-256 of what is read and trained: tools, instruction, observations, thoughts, actions."""
    steps = [(s.observation, s.thought, s.action) for s in trajectory.steps]
    content = (trajectory.tools, trajectory.instruction, steps)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _usable(place: str, found: Sequence[Trajectory], left_out: dict[str, int]) -> list[Trajectory]:
    """The trajectories that an expert finished, each once; counts the others."""
    _refuse_blind(place, found)
    solved = [t for t in found if t.success is not False]
    if not solved:
        raise OwnDataError(
            f"{place}: {_counted(found)}, all marked as failed (success: false); expected "
            "what an expert did"
        )
    _count(left_out, "marked as failed (success: false)", len(found) - len(solved))
    unique = dict[str, Trajectory]()
    for t in solved:
        unique.setdefault(content_hash(t), t)
    _count(left_out, "equal to another one", len(solved) - len(unique))
    return [*unique.values()]


def _fitting(
    place: str,
    trajectories: Sequence[Trajectory],
    renderer: Renderer,
    context: int,
    left_out: dict[str, int],
) -> list[RenderedTrajectory]:
    """The trajectories that the model can be trained on, as token ids; counts the others."""
    fitting, reasons = list[RenderedTrajectory](), list[str]()
    for trajectory in trajectories:
        try:
            rendered = renderer.render(trajectory)
        except TemplateError as error:
            reasons.append(str(error))
            continue
        if rendered.num_tokens <= context:
            fitting.append(rendered)
        else:
            reasons.append(f"{printable(trajectory.id)} has {rendered.num_tokens}")
    if not fitting:
        raise OwnDataError(
            f"{place}: no trajectory (of {len(trajectories)}) fits the model's context of "
            f"{context} tokens: {reasons[0]}; use a model with a longer context, or shorten the "
            "observations"
        )
    _count(left_out, "longer than the context, or lost in the chat template", len(reasons))
    return fitting


def _refuse_blind(place: str, trajectories: Sequence[Trajectory]) -> None:
    """Raises `OwnDataError` if no step shows what the actions before it did."""
    has_seen = any(step.observation.strip() for t in trajectories for step in t.steps)
    if not has_seen and any(len(t.steps) > 1 for t in trajectories):
        raise OwnDataError(
            f"{place}: no step has an observation; expected what the agent saw before each "
            "action, such as a user or tool message (docs/formats.md)"
        )


def _refuse_same_file(demonstrations: Path, held_out: Path) -> None:
    if held_out.exists() and demonstrations.exists() and demonstrations.samefile(held_out):
        raise OwnDataError(
            f"--held-out {_shown(held_out)}: the same file as --demonstrations; leave it out, and "
            "a share of the demonstrations is held out"
        )


def _without_held_out(
    own: list[Trajectory],
    other: Sequence[Trajectory],
    demonstrations: str,
    held_out: str,
    left_out: dict[str, int],
) -> list[Trajectory]:
    """The demonstrations without those that are also held out.

    The held-out ones stay, so that runs are measured on the same trajectories whatever they are
    trained on.
    """
    known = {content_hash(t) for t in other}
    kept = [t for t in own if content_hash(t) not in known]
    if not kept:
        raise OwnDataError(
            f"{demonstrations}: all {_counted(own)} are in {held_out} too; "
            "expected other trajectories to train on"
        )
    _count(left_out, "equal to a held-out one", len(own) - len(kept))
    return kept


def _items(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Trajectories by their item: an id that was numbered belongs to the id before it."""
    ids = {t.id for t in trajectories}
    found: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        item = _NUMBERED.sub("", trajectory.id)
        found.setdefault(item if item in ids else trajectory.id, []).append(trajectory)
    return found


def _count(left_out: dict[str, int], reason: str, number: int) -> None:
    if number:
        left_out[reason] = left_out.get(reason, 0) + number


def _counted(trajectories: Sequence[Trajectory]) -> str:
    number = len(trajectories)
    return "1 trajectory" if number == 1 else f"{number} trajectories"


def _shown(path: Path) -> str:
    return printable(str(path), limit=4096)
