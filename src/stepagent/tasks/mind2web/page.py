"""Pages of Mind2Web: parsing them, pruning them around given elements, writing them for an agent.

A page is the data set's `cleaned_html`, which is XML: elements have a `backend_node_id`, and text
is in elements called `text`. Pruning follows the original (Deng et al. 2023;
OSU-NLP-Group/Mind2Web, src/data_utils/dom_utils.py): kept are the given elements, their ancestors,
and some of their descendants and siblings; of attributes, only informative words. The result looks
like `(a #B home (span Go home))`.
"""

from collections.abc import Collection, Iterator, KeysView, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from xml.parsers import expat

from pydantic import JsonValue

ATTRIBUTES = (
    "role",
    "aria_role",
    "type",
    "alt",
    "aria_description",
    "aria_label",
    "label",
    "title",
    "name",
    "text_value",
    "value",
    "placeholder",
    "input_checked",
    "input_value",
    "option_selected",
    "class",
)
"""Attributes whose values are shown, in this order."""

EMPTY_VALUES = {"hidden", "none", "presentation", "null", "undefined"}
WORDS_PER_VALUE = 5
WORDS_PER_ELEMENT = 20
WORDS_PER_TEXT = 20
WORD_CHARS = 15
"""Words of attributes of this length or more are dropped: mostly names of style classes."""

LEVELS_BELOW = 6
ELEMENTS_BELOW = 50
SIBLINGS = 3
"""Siblings kept on each side."""
WORDS_PER_CHOICE = 10

MAX_DEPTH = 256
"""Deepest nesting; the limit of the original's parser."""


class PageError(ValueError):
    """A page cannot be parsed; the message is one line."""


@dataclass(eq=False, slots=True)
class Element:
    """An element of a page, with its child elements and texts in order."""

    tag: str
    id: str
    """Empty if it has none."""
    words: str
    """The informative words of its attributes."""
    children: list["Element | str"] = field(default_factory=list)

    @property
    def elements(self) -> list["Element"]:
        """The child elements."""
        return [child for child in self.children if isinstance(child, Element)]


class Page:
    """A page whose elements are found by id; if ids are repeated, the first element counts."""

    def __init__(self, root: Element) -> None:
        """`root` holds all other elements."""
        self.root = root

    @property
    def ids(self) -> KeysView[str]:
        """All ids in the page's order."""
        return self._by_id.keys()

    def around(self, ids: Collection[str]) -> "Page":
        """The page pruned to these elements and their neighbourhood.

        Pruning to a superset of the elements first does not change the result.
        """
        kept = {self.root}
        for element in (self._by_id[element_id] for element_id in ids):
            kept.add(element)
            kept.update(_below(element, LEVELS_BELOW)[:ELEMENTS_BELOW])
            if parent := self._parents.get(element):
                beside = parent.elements
                place = beside.index(element)
                kept.update(beside[max(0, place - SIBLINGS) : place + SIBLINGS + 1])
            while parent := self._parents.get(element):
                kept.add(parent)
                element = parent
        return Page(_cut(self.root, kept))

    def in_order(self, ids: Collection[str]) -> list[str]:
        """The ids in the order of their elements on the page."""
        return [element_id for element_id in self._by_id if element_id in ids]

    def texts(self, marks: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The page's text, and the first words of each element in `marks`, by id.

        A mark follows the tag, as in `(button #B submit)`.
        """
        marked: dict[str, str] = {}
        page = _text(self.root, marks, marked)
        return page, {i: " ".join(text.split()[:WORDS_PER_CHOICE]) for i, text in marked.items()}

    def to_json(self) -> JsonValue:
        """A list in the page's order: `[depth, tag, id, words]` or, for a text, `[depth, text]`."""
        return list(_rows(self.root, 0))

    @classmethod
    def from_json(cls, value: Any) -> "Page":
        """Restores a page from the result of `to_json`."""
        path: list[Element] = []
        for depth, *parts in value:
            child = Element(*parts) if len(parts) > 1 else parts[0]
            del path[depth:]
            if path:
                path[-1].children.append(child)
            if isinstance(child, Element):
                path.append(child)
        return cls(path[0])

    @cached_property
    def _by_id(self) -> dict[str, Element]:
        by_id: dict[str, Element] = {}
        for element in _walk(self.root):
            if element.id:
                by_id.setdefault(element.id, element)
        return by_id

    @cached_property
    def _parents(self) -> dict[Element, Element]:
        return {child: element for element in _walk(self.root) for child in element.elements}


def read_page(xml: str, *, is_cut: bool = False) -> Page:
    """Parses a page from XML; with `is_cut`, it may end anywhere. Raises `PageError`."""
    if "<!DOCTYPE" in xml:
        raise PageError("has a document type, whose entities could expand without limit")
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.texts.append
    try:
        parser.Parse(xml, not is_cut)
    except (expat.ExpatError, UnicodeEncodeError) as error:
        raise PageError(f"invalid XML: {error}") from None
    reader.flush()
    if reader.root is None:
        raise PageError("has no element")
    return Page(reader.root)


def shown_words(attributes: Mapping[str, str]) -> str:
    """The informative words of attributes: short, in lower case, without repeated values."""
    values: list[str] = []
    for name in ATTRIBUTES:
        value = attributes.get(name, "").lower()
        if value in EMPTY_VALUES or value.startswith("http"):
            continue
        words = [word for word in value.split() if len(word) < WORD_CHARS]
        values.append(" ".join(words[:WORDS_PER_VALUE]))
    words = " ".join(dict.fromkeys(values)).split()
    return " ".join(words[:WORDS_PER_ELEMENT])


class _Reader:
    """Builds elements during parsing; a truncated page simply leaves some open."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self.texts: list[str] = []
        self._open: list[Element] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.flush()
        if tag == "text":
            return
        element = Element(tag, attributes.get("backend_node_id", ""), shown_words(attributes))
        if len(self._open) == MAX_DEPTH:
            raise PageError(f"elements are nested deeper than {MAX_DEPTH}")
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, tag: str) -> None:
        self.flush()
        if tag != "text":
            self._open.pop()

    def flush(self) -> None:
        words = "".join(self.texts).split()[:WORDS_PER_TEXT]
        self.texts.clear()
        if words and self._open:
            self._open[-1].children.append(" ".join(words))


def _walk(element: Element) -> Iterator[Element]:
    yield element
    for child in element.elements:
        yield from _walk(child)


def _below(element: Element, levels: int) -> list[Element]:
    if not levels:
        return []
    return [e for child in element.elements for e in (child, *_below(child, levels - 1))]


def _cut(element: Element, kept: set[Element]) -> Element:
    children = [
        child if isinstance(child, str) else _cut(child, kept)
        for child in element.children
        if isinstance(child, str) or child in kept
    ]
    return Element(element.tag, element.id, element.words, children)


def _text(element: Element, marks: Mapping[str, str], marked: dict[str, str]) -> str:
    """The text of an element; the texts of marked elements are added to `marked`."""
    inside: list[str] = []
    has_text = False
    for child in element.children:
        if isinstance(child, str):
            has_text = True
            inside.append(child)
        elif text := _text(child, marks, marked):
            inside.append(text)
    mark = marks.get(element.id)
    if not (mark or element.words or has_text) and len(inside) <= 1:
        return "".join(inside)  # a box around a single child adds no information
    parts = [element.tag, f"#{mark}" if mark else "", element.words, *inside]
    text = f"({' '.join(part for part in parts if part)})"
    if mark:
        marked.setdefault(element.id, text)
    return text


def _rows(element: Element, depth: int) -> Iterator[JsonValue]:
    yield [depth, element.tag, element.id, element.words]
    for child in element.children:
        if isinstance(child, str):
            yield [depth + 1, child]
        else:
            yield from _rows(child, depth + 1)
