"""The order in which the expert reads supporting paragraphs: each is named by what came before."""

import re
from collections.abc import Sequence


def reading_order(question: str, answer: str, passages: Sequence[tuple[str, str]]) -> list[int]:
    """Indices of the (title, text) passages in the order in which one leads to the next.

    The next passage is the one whose title occurs first in the question and the passages read so
    far. If none occurs, it is one that names another passage, preferably one without the answer.
    """
    known, order, waiting = _words(question), list[int](), list(range(len(passages)))
    titles = [_words(_without_brackets(title)) for title, _ in passages]
    while waiting:
        places = {n: known.find(titles[n]) for n in waiting if titles[n].strip()}
        named = [n for n in waiting if places.get(n, -1) >= 0]
        if named:
            best = min(named, key=lambda n: places[n])
        else:
            best = min(waiting, key=lambda n: _lateness(n, waiting, answer, passages, titles))
        waiting.remove(best)
        order.append(best)
        known += _words(passages[best][1])
    return order


def _lateness(
    place: int,
    waiting: Sequence[int],
    answer: str,
    passages: Sequence[tuple[str, str]],
    titles: Sequence[str],
) -> tuple[bool, bool]:
    text = _words(passages[place][1])
    leads_on = any(titles[n] in text for n in waiting if n != place and titles[n].strip())
    return not leads_on, _words(answer) in text


def _without_brackets(title: str) -> str:
    """The title without a disambiguation, as in `Titanic (1997 film)`."""
    stripped = title.rstrip()
    if not stripped.endswith(")"):
        return title
    # A regular expression would take quadratic time on unclosed brackets.
    start = stripped.find("(", stripped.rfind(")", 0, -1) + 1)
    return (stripped[:start].rstrip() if start >= 0 else "") or title


def _words(text: str) -> str:
    """Lower-case words between single spaces, also at both ends, to match whole words only."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    return f" {words} "
