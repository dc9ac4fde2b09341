import string
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepagent.tasks.qa.metrics import AnswerScore, normalise, score_answer
from stepagent.tasks.qa.questions import Dataset

DATASETS: tuple[Dataset, ...] = ("hotpotqa", "2wikimultihopqa", "musique")

WORDS = ("yes", "No!", "noanswer", "a", "The", "new", "York", "york,", "3,000", "U.S.", "…", "ß")
ANSWERS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles", "beatles"),
        ("a U.S. citizen, an Ö-list", "us citizen ölist"),
        ("3,000", "3000"),
        ("theatre", "theatre"),
        ("an", ""),
        ("“The End”", "“ end”"),  # only ASCII punctuation is dropped; quotes are word boundaries
    ],
)
def test_answers_are_compared_without_case_punctuation_and_articles(
    text: str, expected: str
) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize("dataset", DATASETS)
def test_f1_by_hand(dataset: Dataset) -> None:
    # 2 of 3 words are right, and 2 of 4 right words are there: 2 * (2/3 * 1/2) / (2/3 + 1/2).
    score = score_answer(dataset, "the big new york", ["new york york city"])
    assert (score.em, score.precision, score.recall) == (0, 2 / 3, 1 / 2)
    assert score.f1 == pytest.approx(4 / 7)
    assert score_answer(dataset, "NEW York.", ["the new york"]).em == 1


def test_yes_and_no_share_no_credit_but_in_musique() -> None:
    for dataset in ("hotpotqa", "2wikimultihopqa"):
        assert score_answer(dataset, "yes it is", ["yes"]).f1 == 0
        assert score_answer(dataset, "no", ["no man's land"]).f1 == 0
        assert score_answer(dataset, "Yes!", ["yes"]) == AnswerScore(
            em=1, f1=1, precision=1, recall=1
        )
    assert score_answer("musique", "yes it is", ["yes"]).f1 == 0.5


def test_texts_without_a_word_agree_in_musique_only() -> None:
    assert score_answer("musique", "a", ["The"]).f1 == 1
    assert score_answer("musique", "", ["york"]) == AnswerScore(em=0, f1=0, precision=0, recall=0)
    # The official scripts of the other two call this an exact match with F1 0.
    hotpot = score_answer("hotpotqa", "a", ["The"])
    assert (hotpot.em, hotpot.f1) == (1, 0)


def test_every_number_is_the_best_over_the_accepted_answers() -> None:
    score = score_answer("2wikimultihopqa", "new york", ["new", "big new york city", "york new"])
    assert (score.em, score.precision, score.recall, score.f1) == (0, 1, 1, 1)


def naive(dataset: Dataset, answer: str, accepted: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1, word by word."""

    def words(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [w for w in kept.split() if w not in ("a", "an", "the")]

    best_em, best_f1 = 0.0, 0.0
    for right in accepted:
        own, left, shared = words(answer), words(right), 0
        for word in own:
            if word in left:
                left.remove(word)
                shared += 1
        f1 = 2 * shared / (len(own) + len(words(right))) if shared else 0.0
        closed = any(w in (["yes"], ["no"], ["noanswer"]) for w in (own, words(right)))
        if dataset != "musique" and closed and own != words(right):
            f1 = 0.0
        if dataset == "musique" and not own and not words(right):
            f1 = 1.0
        best_em, best_f1 = max(best_em, float(own == words(right))), max(best_f1, f1)
    return best_em, best_f1


@given(st.sampled_from(DATASETS), ANSWERS, st.lists(ANSWERS, min_size=1, max_size=3))
def test_the_scores_equal_a_naive_version(
    dataset: Dataset, answer: str, accepted: list[str]
) -> None:
    score = score_answer(dataset, answer, accepted)
    em, f1 = naive(dataset, answer, accepted)
    assert score.em == em
    assert score.f1 == pytest.approx(f1)


@given(st.sampled_from(DATASETS), st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_has_a_score(dataset: Dataset, answer: str, accepted: list[str]) -> None:
    score = score_answer(dataset, answer, accepted)
    assert all(0 <= value <= 1 for value in (score.f1, score.precision, score.recall))
    assert score_answer(dataset, accepted[0], accepted).em == 1
