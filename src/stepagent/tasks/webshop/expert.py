"""The expert: a shopper that knows the goal, searches by the instruction and buys the product.

Searches are tried in this order until one has the product on its first page: the instruction
without the price limit, also without options, the words of the goal, and the product's title, which
an agent cannot know. If none has it there, the search with the earliest page is used.
"""

import re

from stepagent.tasks.webshop.goals import Goal
from stepagent.tasks.webshop.pages import PAGE_SIZE, Search
from stepagent.tasks.webshop.reward import matches_option

_PRICE = re.compile(r", and price lower than [\d.]+ dollars$")


def queries(goal: Goal) -> tuple[str, ...]:
    """Searches to try, those that an agent could make itself first."""
    asked = _PRICE.sub("", goal.text)
    without_options = asked.split(" with ")[0] if isinstance(goal.options, dict) else asked
    words = " ".join((goal.product.query, *goal.attributes, *goal.option_values))
    texts = (asked, without_options, words, goal.product.title)
    return tuple(dict.fromkeys(_searchable(text) for text in texts))


def plan(goal: Goal, search: Search) -> list[str]:
    """The actions that buy the goal's product; empty if no search finds it."""
    best: tuple[int, str] | None = None
    for query in queries(goal):
        asins = [product.asin for product in search(query)]
        if goal.product.asin in asins:
            page = asins.index(goal.product.asin) // PAGE_SIZE
            if best is None or page < best[0]:
                best = page, query
    if best is None:
        return []
    page, query = best
    choices = [f"click[{value}]" for value in chosen_values(goal)]
    to_item = [f"search[{query}]", *["click[next >]"] * page, f"click[{goal.product.asin.lower()}]"]
    return [*to_item, *choices, "click[buy now]"]


def chosen_values(goal: Goal) -> list[str]:
    """Option values to click: those asked for, or else the first similar value of each."""
    offered = [value for values in goal.product.options.values() for value in values]
    chosen = []
    for wanted in goal.option_values:
        exact = [value for value in offered if value == wanted.lower()]
        alike = [value for value in offered if matches_option([value], wanted)]
        chosen += (exact or alike)[:1]
    return list(dict.fromkeys(chosen))


def _searchable(text: str) -> str:
    """The text without brackets and line breaks, which would end the action."""
    return " ".join(re.sub(r"[\[\]]", " ", text.lower()).split())
