"""Reads single steps of Mind2Web's training part in the format of linyouxue/SkillGen-benchmarking.

Each step is one prompt: task, previous actions, 30 candidates and the first 8,000 characters of the
page. There are no ranks, and the accepted element always comes first in the list, so the order of
the list is not used. Candidates beyond the end of the truncated page are appended to it, as the
list describes them.
"""

import re

from pydantic import ConfigDict, JsonValue

from stepagent.tasks.mind2web.page import Element, Page, read_page, shown_words
from stepagent.tasks.mind2web.steps import (
    PREVIOUS_ACTIONS,
    AnnotatedStep,
    AnnotationId,
    Operation,
    annotated_step,
    checked,
)
from stepagent.types import NonEmpty, Record

_PARTS = {
    "task": (re.compile(r"\nTask: "), re.compile(r"\nWebsite: ")),
    "previous": (
        re.compile(r"\nPrevious actions[^\n]*:\n"),
        re.compile(r"\n\nAvailable candidate[^\n]*:\n"),
    ),
    "candidates": (None, re.compile(r"\n\nCurrent page[^\n]*:\n```html\n")),
    "page": (None, re.compile(r"\n```\n")),
}
"""Patterns before and after each part of a prompt, in order; None is the end of the last part."""

_PREVIOUS = re.compile(r"^  \d+\. (.*)$", re.MULTILINE)
_CANDIDATE = re.compile(r'^  \d+\. <(\S+) bnid="([^"]+)"(.*)>$', re.MULTILINE)
_ATTRIBUTE = re.compile(r'\b(\w+)="([^"]*)')
_CUT = re.compile(r"\n\.\.\. \[HTML truncated; original length \d+\] \.\.\.$")


class _Metadata(Record):
    model_config = ConfigDict(extra="ignore")
    annotation_id: AnnotationId
    action_idx: int
    website: NonEmpty
    domain: NonEmpty
    op: Operation
    value: str
    target_bnids: list[NonEmpty]
    candidate_bnids: list[NonEmpty]


class _SingleStep(Record):
    model_config = ConfigDict(extra="ignore")
    input: NonEmpty
    metadata: _Metadata


def is_single_step(record: JsonValue) -> bool:
    """Whether a record is in this format, by its metadata."""
    metadata = record.get("metadata") if isinstance(record, dict) else None
    return isinstance(metadata, dict) and metadata.get("benchmark") == "mind2web"


def single_step(record: JsonValue) -> list[AnnotatedStep]:
    """The step of a record, as a list of one; raises ValueError if it is invalid."""
    raw = checked(record, _SingleStep)
    prompt, known = _parts_of(raw.input), raw.metadata
    text, cuts = _CUT.subn("", prompt["page"])
    page = read_page(text, is_cut=bool(cuts))
    described = {
        element_id: Element(tag, element_id, shown_words(dict(_ATTRIBUTE.findall(attributes))))
        for tag, element_id, attributes in _CANDIDATE.findall(prompt["candidates"])
    }
    # Sorted by id, nearly the page's order: the list's order would reveal the right element.
    beyond = sorted(described.keys() - page.ids, key=lambda i: (len(i), i))
    page.root.children += [described[element_id] for element_id in beyond]
    return [
        annotated_step(
            Page(page.root),
            part="train",
            annotation_id=known.annotation_id,
            step=known.action_idx,
            website=known.website,
            domain=known.domain,
            is_ranked=False,
            steps_of_task=None,
            task=prompt["task"],
            previous_actions=_PREVIOUS.findall(prompt["previous"])[-PREVIOUS_ACTIONS:],
            operation=known.op,
            value=known.value,
            targets=known.target_bnids,
            candidates=[*dict.fromkeys(known.candidate_bnids)],
        )
    ]


def _parts_of(prompt: str) -> dict[str, str]:
    """The parts of a prompt by name; each pattern is searched once, so this takes linear time."""
    parts, place = {}, 0
    for name, (before, after) in _PARTS.items():
        begin = before.search(prompt, place) if before else None
        if begin:
            place = begin.end()
        end = after.search(prompt, place)
        if end is None or (before and begin is None):
            raise ValueError("input: expected task, previous actions, candidates and page")
        parts[name], place = prompt[place : end.start()], end.end()
    return parts
