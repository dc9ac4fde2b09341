import itertools
import math
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from stepagent.tasks.qa.retrieval import BM25, K1, B

WORDS = st.sampled_from(["lake", "mill", "ship", "rye", "wall"])
TEXTS = st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=8)


def naive_scores(texts: list[str], query: str) -> list[float]:
    """Lucene's BM25, one text and one word at a time."""
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query.split():
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            count = document.count(word)
            if count:
                score += idf * count / (count + K1 * (1 - B + B * len(document) / mean))
        scores.append(score)
    return scores


@given(TEXTS, st.lists(WORDS, max_size=4).map(" ".join))
def test_the_order_is_that_of_a_naive_version(texts: list[str], query: str) -> None:
    found = BM25(texts).search(query, len(texts))
    scores = naive_scores(texts, query) if any(texts) else [0.0] * len(texts)
    assert sorted(found) == [n for n, score in enumerate(scores) if score > 0]
    for better, worse in itertools.pairwise(found):
        assert scores[better] > scores[worse] - 1e-6
        if texts[better] == texts[worse]:
            assert better < worse


def test_the_limit_cuts_the_worst() -> None:
    index = BM25(["mill mill mill", "mill lake", "mill", "rye"])
    everything = index.search("mill", 10)
    assert sorted(everything) == [0, 1, 2]
    assert index.search("mill", 2) == everything[:2]
    assert index.search("mill", 0) == []


def test_stems_and_case_do_not_matter_and_stop_words_and_letters_count() -> None:
    index = BM25(["The Who", "M", "The ships were painted", "Beyoncé"])
    assert index.search("who", 1) == [0]
    assert index.search("m", 1) == [1]
    assert index.search("PAINTING a ship", 1) == [2]
    assert index.search("beyoncé", 1) == [3]


def test_queries_without_words_find_nothing() -> None:
    for index in (BM25([]), BM25([""]), BM25(["?!"]), BM25(["lake"])):
        for query in ("", " ", "?", "\x00", "\ud800", "🔥", "unheard"):
            assert index.search(query, 3) == []


def test_every_process_finds_the_same() -> None:
    # Sets of words have another order in every process.
    code = (
        "from stepagent.tasks.qa.retrieval import BM25\n"
        "texts = [f'{w} {v} lake' for w in 'abcdef' for v in 'ghijkl']\n"
        "print(BM25(texts).search('lake c j a l', 36))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(printed) == 1
