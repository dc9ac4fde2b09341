"""Finds the nouns of product titles, by which the reward decides if two products are of one type.

The original uses spaCy's words tagged NOUN or PROPN. In product titles nearly every word with a
letter is one, so a list of the other words works nearly as well and needs no model to download;
`docs/tasks-webshop.md` has the measured agreement. `WebShopConfig.tagger` selects a spaCy model
instead.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

Tagger = Callable[[str], tuple[str, ...]]
"""Returns the nouns of a title in order, in lower case."""

RULES = "rules"

_LISTED = """
a an the this that these those each every any some both either such
and or but nor as if while than so
of in on at by for from to into onto with without within under up out through between against
about around before during per via near across along behind inside
i me my we us our you your he him his who she her it its they them their
which what when where how
is are was were be been being do does did has have had can could will would should may must not
made make makes includes included including more most very only also just
one two three four five six seven eight nine ten x
"""
NOT_NOUNS = frozenset(_LISTED.split())
"""Words of titles that are not nouns, by spaCy's tags of 1,000 titles."""

_WORD = re.compile(
    r"(?<![^\W_])\d+(?:[.,]\d+)*(?P<unit>mm|cm|ft|g|kg|mg|gb|mb|tb|k)(?![^\W_])"  # 100mm: mm
    r"|[^\W_]+(?:['’](?!s\b)[^\W_]+)*"
    r"|\|",  # spaCy's small model tags it as a noun
    re.IGNORECASE,
)
_QUANTITY = re.compile(r"(?![34]d)\d+[a-z]{0,4}\d*")
"""A number with a unit, such as 4pcs or 12v; 3D and 4D count as nouns."""


def nouns_by_rules(title: str) -> tuple[str, ...]:
    """All words with a letter, except listed ones and numbers with a unit."""
    words = (
        (match["unit"] or match.group()).lower()
        for match in _WORD.finditer(re.sub(r"['’]s\b", " ", title, flags=re.IGNORECASE))
    )
    return tuple(
        word
        for word in words
        if word == "|"
        or (
            word not in NOT_NOUNS
            and any(letter.isalpha() for letter in word)
            and not _QUANTITY.fullmatch(word)
        )
    )


def tagger(name: str) -> Tagger:
    """The rules, or an installed spaCy model by name; raises ValueError if it is not installed."""
    if name == RULES:
        return nouns_by_rules
    try:
        model = import_module("spacy").load(name)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"tagger {name!r} is neither {RULES!r} nor an installed spaCy model: {error}"
        ) from None

    @lru_cache(maxsize=4096)
    def nouns(title: str) -> tuple[str, ...]:
        return tuple(word.text.lower() for word in model(title) if word.pos_ in ("NOUN", "PROPN"))

    return nouns
