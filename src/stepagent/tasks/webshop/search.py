"""The shop's search: Lucene's BM25 over the words of Lucene's English analyzer.

The original searches a Lucene index through pyserini with its defaults: k1 0.9, b 0.4, standard
tokenizer, possessives and 33 stop words removed, Porter stemmer. One difference remains: Lucene
stores the lengths of long documents only approximately, so that near ties may be ordered
differently.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer

_LISTED = """
a an and are as at be but by for if in into is it no not of on or such that the their then there
these they this to was will with
"""
STOP_WORDS = frozenset(_LISTED.split())
"""Stop words of Lucene's English analyzer."""

MAX_LENGTH = 255
"""Longest word; Lucene splits longer ones, but no product has any."""

_TOKEN = re.compile(
    r"\w+(?:(?:(?<=[^\W\d_])[.:'’](?=[^\W\d_])|(?<=\d)[.,;'’](?=\d))\w+)*"  # don't, u.s, 3.5
)
_STEMMER = Stemmer.Stemmer("porter")


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return str(_STEMMER.stemWord(word))


def words(text: str) -> list[str]:
    """The stemmed terms of a text, in order."""
    tokens = (re.sub(r"['’]s$", "", token) for token in _TOKEN.findall(text.lower()))
    return [_stem(word) for word in tokens if word not in STOP_WORDS and len(word) <= MAX_LENGTH]


def build_index(texts: Iterable[str], folder: Path) -> None:
    """Writes the index of documents, which are numbered from 0."""
    vocabulary: dict[str, int] = {}
    documents = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts
    ]
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    index.save(str(folder), show_progress=False)


class SearchEngine:
    """An index on disk; its arrays are memory-mapped, so that processes share them."""

    def __init__(self, folder: Path) -> None:
        """Opens what `build_index` wrote."""
        self._index: Any = bm25s.BM25.load(str(folder), mmap=True)

    def search(self, text: str, limit: int) -> Sequence[int]:
        """Numbers of documents that share a word with the text, best first, ties by number."""
        vocabulary = self._index.vocab_dict
        terms = [vocabulary[word] for word in words(text) if word in vocabulary]
        if not terms:
            return []
        scores: np.ndarray = self._index.get_scores_from_ids(terms)
        found = np.flatnonzero(scores)
        if len(found) > limit:  # keep all that tie with the last one
            found = found[scores[found] >= np.partition(scores[found], -limit)[-limit]]
        best = found[np.argsort(-scores[found], kind="stable")[:limit]]
        return [int(number) for number in best]
