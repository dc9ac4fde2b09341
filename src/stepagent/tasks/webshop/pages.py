"""The shop's pages as text, and the page that each action leads to (`web_agent_text_env.py`).

A page's text equals the original's in its `text` mode: the pieces of visible text of the HTML,
joined by " [SEP] ". Chosen options are not part of it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stepagent.tasks.webshop.products import Product

BACK_TO_SEARCH, NEXT, BACK, BUY = "Back to Search", "Next >", "< Prev", "Buy Now"
TABS = ("Description", "Features", "Reviews")
PAGE_SIZE = 10

Search = Callable[[str], Sequence[Product]]
"""Returns the products that match a text, best first."""


def parse_action(action: str) -> tuple[str, str]:
    r"""Name and argument of an action, the latter in lower case; both are empty if it is invalid.

    Matches what the original's `(.+)\[(.+)\]` matches, but in linear time.
    """
    line = action.partition("\n")[0]
    close = line.rfind("]")
    start = line.rfind("[", 0, max(close - 1, 0))
    return (line[:start], line[start + 1 : close].lower()) if start > 0 else ("", "")


@dataclass(frozen=True)
class Page:
    """The current page of a customer; a click or a search gives the next one."""

    kind: Literal["search", "results", "item", "tab", "done"] = "search"
    results: Sequence[Product] = ()
    """Results of the last search."""
    number: int = 1
    """Number of the page of results, from 1."""
    product: Product | None = None
    tab: str = ""
    options: dict[str, str] = field(default_factory=dict)
    """Chosen option values, by name."""

    def after(self, action: str, search: Search) -> "Page":
        """The page that an action leads to; the same page if the action is not possible here."""
        name, argument = parse_action(action)
        if name == "search":
            return Page(kind="results", results=search(argument))
        return self._clicked(argument) if name == "click" else self

    def clickables(self) -> list[str]:
        """Everything that can be clicked, in lower case, options last."""
        match self.kind:
            case "results":
                back = [BACK] if self.number > 1 else []
                buttons = [BACK_TO_SEARCH, *back, NEXT]
                buttons += [product.asin for product in self._shown()]
            case "item":
                buttons = [BACK_TO_SEARCH, BACK, *TABS, BUY]
            case "tab":
                buttons = [BACK_TO_SEARCH, BACK]
            case _:
                buttons = []
        options = self.opened.options.values() if self.kind == "item" else ()
        return [text.lower() for text in buttons] + [value for v in options for value in v]

    def text(self, instruction: str) -> str:
        """The observation of the page."""
        head = ["Instruction:", instruction]
        match self.kind:
            case "search":
                pieces = ["WebShop", *head, "Search"]
            case "results":
                total = f"Page {self.number} (Total results: {len(self.results)})"
                back = [BACK] if self.number > 1 else []
                pieces = [*head, BACK_TO_SEARCH, total, *back, NEXT]
                for product in self._shown():
                    pieces += [product.asin, product.title, product.price_tag]
            case "item":
                product = self.opened
                pieces = [*head, BACK_TO_SEARCH, BACK]
                for name, values in product.options.items():
                    pieces += [name, *values]
                pieces += [product.title, f"Price: {product.price_tag}", "Rating: N.A.", *TABS, BUY]
            case "tab":
                pieces = [*head, BACK_TO_SEARCH, BACK, *self._tab_texts()]
            case "done":
                raise ValueError("the last page needs the reward: see done_text")
        return _joined(pieces)

    def done_text(self, reward: float) -> str:
        """The last page, with hidden fields that are empty in the original's text mode."""
        options = json.dumps(self.options, sort_keys=True)
        for char in "<>&'":  # as Flask's filter writes JSON into HTML
            options = options.replace(char, f"\\u{ord(char):04x}")
        bought = ["asin", self.opened.asin, "options", options, "attrs", "None"]
        bought += ["category", "None", "query", "None", "product category", "None"]
        target = ["asin", "options", "attrs", "price upper", "instuction text", "category"]
        return _joined(
            [
                "Thank you for shopping with us!", "Your code:", "None",
                "(Paste it in your MTurk interface.)",
                "Purchased", *bought, "Target", *target, "product category", "query",
                "Goal", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward),
                "Reward Details", "None",
            ]
        )  # fmt: skip

    @property
    def opened(self) -> Product:
        """The product of an item page, a tab or the last page."""
        assert self.product is not None, f"no product on a page of kind {self.kind}"
        return self.product

    def _shown(self) -> Sequence[Product]:
        return self.results[(self.number - 1) * PAGE_SIZE : self.number * PAGE_SIZE]

    def _tab_texts(self) -> list[str]:
        match self.tab:
            case "description":
                return [self.opened.description]
            case "features":
                return [f" {bullet}" for bullet in self.opened.bullets]
            case _:
                return []  # reviews: the original does not load them

    def _clicked(self, what: str) -> "Page":
        if what not in self.clickables():
            return self
        if what == BACK_TO_SEARCH.lower():
            return Page()
        match self.kind, what:
            case "results", "next >":
                return replace(self, number=self.number + 1)
            case "results", "< prev":
                return replace(self, number=self.number - 1)
            case "results", _:
                clicked = next(p for p in self._shown() if p.asin.lower() == what)
                return replace(self, kind="item", product=clicked)
            case "tab", _:
                return replace(self, kind="item", tab="")
            case _, "< prev":
                return Page(kind="results", results=self.results, number=self.number)
            case _, "buy now":
                return replace(self, kind="done")
            case _, "description" | "features" | "reviews":
                return replace(self, kind="tab", tab=what)
        # If several options have the value, the last one is set.
        name = [name for name, values in self.opened.options.items() if what in values][-1]
        return replace(self, options=self.options | {name: what})


def _joined(pieces: Sequence[str]) -> str:
    """Joins pieces as the original's HTML parser does: without empty ones and blank lines."""
    kept = (p for p in pieces if p and (p.strip(" \n\t\f\r") or "\n" not in p))
    return " [SEP] ".join(piece.strip() for piece in kept)
