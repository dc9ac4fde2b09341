"""BM25 search over texts, by bm25s: the scores, k1 and b of Lucene, with English stems."""

import re
from collections.abc import Sequence
from importlib.metadata import version

import bm25s
import numpy as np
import Stemmer

K1, B = 1.2, 0.75
"""What Lucene and Elasticsearch start with; bm25s itself has k1 = 1.5."""

_WORD = re.compile(r"\w+")


class BM25:
    """An index of texts that never changes; any number of threads may search it."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Indexes the texts, which takes seconds for every hundred thousand of them."""
        words = _words(texts)
        # Compiled code (auto_compile, if numba is there) need not give the same last digits.
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene", auto_compile=False)
        self._is_empty = not any(words)
        if not self._is_empty:
            self._index.index(words, show_progress=False)

    def search(self, query: str, limit: int) -> list[int]:
        """Positions of the best texts, best first, equally good ones in order.

        Texts without any word of the query are not found.
        """
        words = _words([query])[0]
        if not words or self._is_empty:
            return []
        scores = self._index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:limit]
        return [int(position) for position in best if scores[position] > 0]


def describe() -> str:
    """Engine and settings, for reports."""
    return (
        f"BM25 (Lucene), k1={K1}, b={B}, English Snowball stems, no stop words; "
        f"bm25s {version('bm25s')}, PyStemmer {version('PyStemmer')}"
    )


def _words(texts: Sequence[str]) -> list[list[str]]:
    # Titles may be nothing but stop words ("The Who") or one letter ("M"): every word counts.
    # A stemmer keeps words in a cache of its own and must not be used by two threads.
    stemmer = Stemmer.Stemmer("english")
    return [stemmer.stemWords(_WORD.findall(text.lower())) for text in texts]
