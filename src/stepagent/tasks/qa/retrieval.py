"""BM25 search over texts with bm25s, using Lucene's scores, k1 and b, and English stemming."""

import re
from collections.abc import Sequence
from importlib.metadata import version

import bm25s
import numpy as np
import Stemmer

K1, B = 1.2, 0.75
"""The defaults of Lucene and Elasticsearch; bm25s's own default is k1 = 1.5."""

_WORD = re.compile(r"\w+")


class BM25:
    """A read-only index of texts; any number of threads may search it."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Indexes the texts, which takes seconds per hundred thousand."""
        words = _words(texts)
        # Compiled code (auto_compile, with numba) may differ in the last digits.
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene", auto_compile=False)
        self._is_empty = not any(words)
        if not self._is_empty:
            self._index.index(words, show_progress=False)

    def search(self, query: str, limit: int) -> list[int]:
        """Indices of the `limit` best texts, best first, ties in order.

        Texts without any word of the query are not returned.
        """
        words = _words([query])[0]
        if not words or self._is_empty:
            return []
        scores = self._index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:limit]
        return [int(position) for position in best if scores[position] > 0]


def describe() -> str:
    """Search engine and settings, for reports."""
    return (
        f"BM25 (Lucene), k1={K1}, b={B}, English Snowball stems, no stop words; "
        f"bm25s {version('bm25s')}, PyStemmer {version('PyStemmer')}"
    )


def _words(texts: Sequence[str]) -> list[list[str]]:
    # No word is dropped: titles may consist of stop words ("The Who") or one letter ("M").
    # A stemmer has a cache and must not be shared by threads.
    stemmer = Stemmer.Stemmer("english")
    return [stemmer.stemWords(_WORD.findall(text.lower())) for text in texts]
