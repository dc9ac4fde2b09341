"""A multi-hop question with its paragraphs, and how it is read from the formats in circulation.

Three formats are known: that of HotpotQA and 2WikiMultihopQA (`context`, `supporting_facts`; on the
hub these are columns, or JSON in strings), that of MuSiQue (`paragraphs`,
`question_decomposition`), and that of IRCoT (`contexts`, `answers_objects`), which exists for all
three data sets.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stepagent.tasks.qa.reading_order import reading_order
from stepagent.types import NonEmpty, Record

Dataset = Literal["hotpotqa", "2wikimultihopqa", "musique"]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Paragraph(Record):
    """A passage of an article; the unit of search."""

    title: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """All sentences, joined by spaces."""
        return " ".join(self.sentences)


class Hop(Record):
    """One supporting paragraph."""

    paragraph: int
    """Index among the question's paragraphs."""
    question: str = ""
    """The sub-question that it answers, if the data set has one."""


class Question(Record):
    """A question, and the paragraphs that answer it."""

    id: NonEmpty
    kind: NonEmpty
    """Type of question: HotpotQA's and 2WikiMultihopQA's own; for MuSiQue `2hop` to `4hop`."""
    question: NonEmpty
    answers: tuple[NonEmpty, ...]
    """The answer, then its aliases."""
    paragraphs: tuple[Paragraph, ...]
    hops: tuple[Hop, ...]
    """Supporting paragraphs, in the order in which one leads to the next."""


class UnusableError(ValueError):
    """A record is not a valid question; the message is the reason, by which these are counted."""


def read_question(dataset: Dataset, record: Any, aliases: Mapping[str, Sequence[str]]) -> Question:
    """Reads a question from a record in any of the known formats; raises `UnusableError`.

    `aliases` are 2WikiMultihopQA's aliases of answers, by `answer_id`.
    """
    if not isinstance(record, dict):
        raise UnusableError("not a JSON object")
    try:
        if "contexts" in record or "answers_objects" in record:
            return _read_ircot(dataset, record)
        if dataset == "musique":
            return _read_musique(record)
        return _read_native(record, aliases)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, UnusableError):
            raise
        raise UnusableError("not in a known format") from error


def question_id(record: Any) -> str | None:
    """The id of a record in any format; None without one."""
    if not isinstance(record, dict):
        return None
    stated = record.get("_id") or record.get("id") or record.get("question_id")
    return stated if isinstance(stated, str) else None


def _read_native(record: Mapping[str, Any], aliases: Mapping[str, Sequence[str]]) -> Question:
    context = _columns(_stated(record, "context", "no paragraphs"), "title", "sentences")
    facts = _columns(_stated(record, "supporting_facts", "no supporting facts"), "title", "sent_id")
    paragraphs = _distinct([_paragraph(title, sentences) for title, sentences in context])
    supporting = []
    for title, sentence in dict.fromkeys((title, int(sentence)) for title, sentence in facts):
        own = [n for n, paragraph in enumerate(paragraphs) if paragraph.title == title]
        if not own:
            raise UnusableError("a supporting paragraph is not among its paragraphs")
        # Some facts name a sentence that does not exist, and a few titles occur twice.
        supporting.append(next((n for n in own if sentence < len(paragraphs[n].sentences)), own[0]))
    question = str(_stated(record, "question", "no question"))
    answer = str(_stated(record, "answer", "no answer"))
    return Question(
        id=_id(record),
        kind=record.get("type") or "unknown",
        question=question,
        answers=_answers(answer, aliases.get(str(record.get("answer_id")), ())),
        paragraphs=tuple(paragraphs),
        hops=_hops(question, answer, paragraphs, supporting),
    )


def _read_musique(record: Mapping[str, Any]) -> Question:
    given = _stated(record, "paragraphs", "no paragraphs")
    if record.get("answerable") is False:
        raise UnusableError("not answerable (of MuSiQue-Full)")
    paragraphs = [_paragraph(p["title"], p["paragraph_text"]) for p in given]
    places = {p.get("idx", place): place for place, p in enumerate(given)}
    answers: list[str] = []
    hops: dict[int, Hop] = {}
    for step in _stated(record, "question_decomposition", "no decomposition"):
        place = places.get(step["paragraph_support_idx"])
        if place is None:
            raise UnusableError("a supporting paragraph is not among its paragraphs")
        # A step refers to the answers of earlier ones as #1, #2, ...
        asked = re.sub(
            r"#(\d+)", lambda m: answers[int(m[1]) - 1], str(step["question"]).replace(">>", " ")
        )
        answers.append(step["answer"])
        hops.setdefault(place, Hop(paragraph=place, question=" ".join(asked.split())))
    answer = str(_stated(record, "answer", "no answer"))
    return Question(
        id=_id(record),
        kind=_hop_count(_id(record), len(hops)),
        question=str(_stated(record, "question", "no question")),
        answers=tuple(
            dict.fromkeys((answer, *filter(str.strip, record.get("answer_aliases") or ())))
        ),
        paragraphs=tuple(paragraphs),
        hops=tuple(hops.values()),
    )


def _read_ircot(dataset: Dataset, record: Mapping[str, Any]) -> Question:
    given = _stated(record, "contexts", "no paragraphs")
    spans = [answer["spans"] for answer in _stated(record, "answers_objects", "no answer")]
    if any(len(texts) != 1 for texts in spans):
        raise UnusableError("an answer of several parts")
    answers = _answers(str(spans[0][0]), [str(texts[0]) for texts in spans])
    paragraphs = _distinct([_paragraph(p["title"], p["paragraph_text"]) for p in given])
    supporting = [
        paragraphs.index(_paragraph(p["title"], p["paragraph_text"]))
        for p in given
        if p["is_supporting"]
    ]
    if not supporting:
        raise UnusableError("no supporting facts")
    question = str(_stated(record, "question_text", "no question"))
    kind = record.get("type") or "unknown"
    if dataset == "musique":
        kind = _hop_count(_id(record), len(supporting))
    return Question(
        id=_id(record),
        kind=kind,
        question=question,
        answers=answers,
        paragraphs=tuple(paragraphs),
        hops=_hops(question, answers[0], paragraphs, supporting),
    )


def _hops(
    question: str, answer: str, paragraphs: Sequence[Paragraph], supporting: Sequence[int]
) -> tuple[Hop, ...]:
    places = list(dict.fromkeys(supporting))
    passages = [(paragraphs[place].title, paragraphs[place].text) for place in places]
    order = reading_order(question, answer, passages)
    return tuple(Hop(paragraph=places[place]) for place in order)


def _answers(answer: str, aliases: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((answer, *(alias for alias in aliases if alias.strip()))))


def _id(record: Mapping[str, Any]) -> str:
    stated = question_id(record)
    if not stated or not stated.strip():
        raise UnusableError("no id")
    return stated


def _stated(record: Mapping[str, Any], field: str, otherwise: str) -> Any:
    value = record.get(field)
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise UnusableError(otherwise)
    return value


def _columns(value: Any, *names: str) -> list[Sequence[Any]]:
    """The rows of a list of rows, of a dict of columns, or of the JSON text of either."""
    if isinstance(value, str):
        value = json.loads(value)
    rows = zip(*(value[name] for name in names), strict=True) if isinstance(value, dict) else value
    return [(row[0], row[1]) for row in rows]


def _paragraph(title: str, text: str | Sequence[str]) -> Paragraph:
    """A paragraph with the data set's sentences; a single text is split after `.`, `!` and `?`."""
    sentences = _SENTENCE_END.split(text) if isinstance(text, str) else text
    cleaned = (" ".join(sentence.split()) for sentence in sentences)
    return Paragraph(title=title, sentences=tuple(s for s in cleaned if s))


def _distinct(paragraphs: Sequence[Paragraph]) -> list[Paragraph]:
    return list(dict.fromkeys(paragraphs))


def _hop_count(item: str, hops: int) -> str:
    stated = re.match(r"\dhop", item)
    return stated[0] if stated else f"{hops}hop"
