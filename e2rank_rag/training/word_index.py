"""BM25 over the documents of a dataset, in memory, and its fusion with a dense ranking.

Scores are those of a Qdrant collection with the same sparse vectors and Qdrant's IDF modifier, and
`fused` is Qdrant's reciprocal rank fusion, so lists that are mined here hold what a hybrid search
retrieves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from e2rank_rag.words import Bm25

BLOCK = 256

RRF_K = 2
"""Qdrant's default: a document at place p of a ranking, from 0, gets 1 / (p + 2)."""


@dataclass(frozen=True, slots=True)
class WordIndex:
    """The sparse vectors of n documents, of m distinct words.

    places: by a word's id, its row in `weights`: float32 [m, n], times the words' idf.
    """

    bm25: Bm25
    places: Mapping[int, int]
    weights: csr_array

    @classmethod
    def of(cls, bm25: Bm25, texts: Sequence[str]) -> WordIndex:
        """Analyse these documents."""
        vectors = bm25.documents(texts)
        ids = np.concatenate([np.asarray(each.indices, np.int64) for each in vectors])
        values = np.concatenate([np.asarray(each.values, np.float32) for each in vectors])
        rows = np.repeat(np.arange(len(texts)), [len(each.indices) for each in vectors])
        words, places, counts = np.unique(ids, return_inverse=True, return_counts=True)
        idf = np.log((len(texts) - counts + 0.5) / (counts + 0.5) + 1.0).astype(np.float32)
        weights = csr_array((values * idf[places], (places, rows)), shape=(len(words), len(texts)))
        return cls(bm25, dict(zip(words.tolist(), range(len(words)), strict=True)), weights)

    def best(self, queries: Sequence[str], count: int) -> list[list[int]]:
        """For each query the rows of up to `count` documents with the highest scores, best first;
        documents without a word of the query have no score and are left out."""
        found: list[list[int]] = []
        for start in range(0, len(queries), BLOCK):
            scores = self.scores(queries[start : start + BLOCK])
            for begin, end in pairwise(scores.indptr):
                order = np.argsort(-scores.data[begin:end], kind="stable")[:count]
                found.append(scores.indices[begin:end][order].tolist())
        return found

    def scores(self, queries: Sequence[str]) -> csr_array:
        """The scores of all documents for q queries, float32 [q, n], with sorted indices."""
        scores = csr_array(self._asked(queries) @ self.weights)
        scores.sort_indices()
        return scores

    def _asked(self, queries: Sequence[str]) -> csr_array:
        """The sparse vectors of q queries, [q, m], without words that no document has."""
        rows, places, values = [], [], []
        for row, query in enumerate(queries):
            vector = self.bm25.query(query)
            for word, value in zip(vector.indices, vector.values, strict=True):
                if word in self.places:
                    rows.append(row)
                    places.append(self.places[word])
                    values.append(value)
        shape = (len(queries), len(self.places))
        return csr_array((np.array(values, np.float32), (rows, places)), shape=shape)


def fused(dense: Sequence[int], words: Sequence[int], count: int, *, k: int = RRF_K) -> list[int]:
    """The best `count` of two rankings by reciprocal rank fusion; of equals, dense ones first."""
    scores: dict[int, float] = {}
    for ranking in (dense, words):
        for place, row in enumerate(ranking):
            scores[row] = scores.get(row, 0.0) + 1.0 / (place + k)
    return sorted(scores, key=scores.__getitem__, reverse=True)[:count]
