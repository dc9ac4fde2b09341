"""Exact match and F1 of answers, by the official rules of each data set.

All three compare words after the same normalisation, but their rules differ:

- HotpotQA (`hotpot_evaluate_v1.py` of hotpotqa/hotpot): one accepted answer; yes and no get no
  partial credit, and a text without words has F1 0.
- 2WikiMultihopQA (`2wikimultihop_evaluate_v1.1.py` of Alab-NII/2wikimultihop): the same, but the
  best over the answer and its aliases, separately for each number.
- MuSiQue (`metrics/answer.py` of StonyBrookNLP/musique): the best over the answer and its aliases;
  no rule for yes and no; two texts without words agree.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stepagent.tasks.qa.questions import Dataset

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED = {"yes", "no", "noanswer"}


@dataclass(frozen=True, kw_only=True)
class AnswerScore:
    """How well an answer agrees with the accepted one; all numbers are from 0 to 1."""

    em: float
    f1: float
    precision: float
    recall: float


NO_ANSWER = AnswerScore(em=0.0, f1=0.0, precision=0.0, recall=0.0)
"""The score of an episode without an answer."""


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score_answer(dataset: Dataset, answer: str, accepted: Sequence[str]) -> AnswerScore:
    """The best of each number over the accepted answers (at least one)."""
    scores = [_score(dataset, normalise(answer), normalise(right)) for right in accepted]
    return AnswerScore(
        em=max(score.em for score in scores),
        f1=max(score.f1 for score in scores),
        precision=max(score.precision for score in scores),
        recall=max(score.recall for score in scores),
    )


def _score(dataset: Dataset, answer: str, right: str) -> AnswerScore:
    em = float(answer == right)
    if dataset == "musique":
        if not answer or not right:
            return AnswerScore(em=em, f1=em, precision=em, recall=em)
    elif answer != right and _CLOSED & {answer, right}:
        return NO_ANSWER
    words, right_words = answer.split(), right.split()
    shared = sum((Counter(words) & Counter(right_words)).values())
    if shared == 0:
        return AnswerScore(em=em, f1=0.0, precision=0.0, recall=0.0)
    precision, recall = shared / len(words), shared / len(right_words)
    f1 = 2 * precision * recall / (precision + recall)
    return AnswerScore(em=em, f1=f1, precision=precision, recall=recall)
