"""Reads WebShop's session logs of human shoppers (princeton-nlp/WebShop, `user_session_logs`).

A log has one line per page that was opened: `{"page", "url", "goal", "content"}`, the last one with
`reward`. A file is one session; a file of several has a `{"session", "steps"}` object for each.
There is no export.

The log does not contain the actions, but two consecutive pages determine the action between them;
if none leads from one to the other (a browser's back button), the session is rejected. A page
that was loaded twice is one step. Nor does the log contain the text of the pages: the observations
here have the buttons and whatever was logged, without titles, prices and option names. They serve
for reading and counting, but are not the observations that an agent gets from the shop.
"""

import json
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from stepagent.formats.records import FormatError, Notes, checked, checked_trajectory, id_of
from stepagent.types import NonEmpty, Record, Trajectory


class Goal(Record, extra="allow"):
    """What the shopper was asked to buy."""

    instruction_text: NonEmpty


class Content(Record, extra="allow"):
    """What was logged of a page's content."""

    keywords: list[str] | str = ""
    page: int | str = ""
    asin: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    search_result_asins: list[str] = Field(default_factory=list)

    def is_of(self, results: "Content") -> bool:
        """Whether an item's page was opened from `results`, whose fields it has as Python text."""
        return (self.keywords, self.page) == (str(results.keywords), str(results.page))


class Page(Record, extra="allow"):
    """One line of a log."""

    page: Literal["index", "search_results", "item_page", "item_sub_page", "done"]
    url: str
    goal: Goal
    content: Content = Content()
    reward: Annotated[float, Field(ge=0, le=1)] | None = None
    reward_info: JsonValue = None


class Session(Record, extra="allow"):
    """All lines of a log."""

    steps: list[Page]
    session: JsonValue = None


def read_webshop(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """Reads a session; `name` is its id if it has none itself, and `task` its task."""
    session = checked(record, Session)
    # Consecutive pages with the same address are one page that was loaded again.
    moves = [
        (index, page, after)
        for index, (page, after) in enumerate(pairwise(session.steps))
        if page.url != after.url
    ]
    if not moves:
        raise FormatError("steps: expected at least two different pages")
    goal, last = session.steps[0].goal, session.steps[-1]
    instruction = goal.instruction_text
    steps: list[dict[str, JsonValue]] = [
        {"observation": _observation(page, instruction), "action": _action(page, after, index)}
        for index, page, after in moves
    ]
    if last.reward is not None:
        steps[-1] |= {"reward": last.reward}
    about: dict[str, JsonValue] = {"goal": goal.model_dump(mode="json")}
    if last.reward_info is not None:
        about["reward_info"] = last.reward_info
    return checked_trajectory(
        id=id_of(session.session, "session") or name,
        task=task,
        instruction=instruction,
        steps=tuple(steps),
        final_observation=_observation(last, instruction),
        score=None if last.reward is None else 100 * last.reward,
        success=None if last.reward is None else last.reward == 1,
        metadata={"webshop": about},
    )


def _action(before: Page, after: Page, index: int) -> str:
    """The action that leads from one page to the next; raises `FormatError` if there is none."""
    old, new = before.content, after.content
    same_item = (new.asin, new.options) == (old.asin, old.options)
    match before.page, after.page:
        case "index", "search_results" if isinstance(new.keywords, list) and new.page == 1:
            return f"search[{' '.join(new.keywords)}]"
        case "search_results" | "item_page" | "item_sub_page", "index":
            return "click[back to search]"
        case "search_results", "search_results" if new.keywords == old.keywords:
            if isinstance(old.page, int) and new.page == old.page + 1:
                return "click[next >]"
            if isinstance(old.page, int) and new.page == old.page - 1:
                return "click[< prev]"
        case "search_results", "item_page" if new.is_of(old) and not new.options:
            if new.asin in old.search_result_asins:
                return f"click[{new.asin.lower()}]"
        case "item_page", "search_results" if old.is_of(new):
            return "click[< prev]"
        case "item_page", "item_page" if new.asin == old.asin:
            chosen = [k for k, value in new.options.items() if old.options.get(k) != value]
            if len(chosen) == 1 and new.options == old.options | {
                chosen[0]: new.options[chosen[0]]
            }:
                return f"click[{new.options[chosen[0]]}]"
        case "item_page", "item_sub_page" if same_item and after.url.count("/") > 1:
            return f"click[{after.url.split('/')[-2].lower()}]"
        case "item_sub_page", "item_page" if same_item:
            return "click[< prev]"
        case "item_page", "done" if same_item:
            return "click[buy now]"
    raise FormatError(
        f"steps[{index + 1}]: no single action leads to this page ({after.page}) from the one "
        f"before ({before.page}); expected only moves by the shop's own buttons"
    )


def _observation(page: Page, instruction: str) -> str:
    """What the log contains of a page, in the order of the shop's texts."""
    content = page.content
    options = [json.dumps(content.options, ensure_ascii=False)] if content.options else []
    task = ["Instruction:", instruction]
    match page.page:
        case "index":
            parts = ["WebShop", *task, "Search"]
        case "search_results":
            back = ["< Prev"] if content.page != 1 else []
            parts = [*task, "Back to Search", f"Page {content.page}", *back, "Next >"]
            parts += content.search_result_asins
        case "item_page":
            parts = [*task, "Back to Search", "< Prev", *options, content.asin]
            parts += ["Description", "Features", "Reviews", "Buy Now"]
        case "item_sub_page":
            parts = [*task, "Back to Search", "< Prev"]
        case "done":
            parts = ["Thank you for shopping with us!", "asin", content.asin, *options]
    return " [SEP] ".join(parts)
