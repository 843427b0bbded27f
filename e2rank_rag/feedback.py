"""Pseudo-relevance feedback from a list of candidates, before any of them is read.

    feedback = Feedback()
    scores = feedback.evidence("who sang it?", texts, vectors @ query)   # per candidate
    better = query + feedback.weight * feedback.mean(vectors, scores)

Each candidate is weighed by how well it matches, in meaning (the cosine that the index knows) and
in words (BM25 over the candidates alone, so no second index is needed). The mean vector under these
weights is added to the query's, as in Rocchio 1971, whose weights are all the same; and a listwise
prompt shows the candidates in this order. Costs no forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Scores = NDArray[np.float32]
Vectors = NDArray[np.float32]


class Feedback(BaseModel):
    """How candidates are weighed, and how much their mean counts.

    lexical_weight: of the BM25 scores beside the cosines, both standardised over the candidates.
    temperature: of the softmax over these sums; the lower, the more the best one counts.
    weight: of the candidates' mean vector, added to a unit query vector; 0: they only choose what a
        prompt shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lexical_weight: float = Field(default=0.8, ge=0.0)
    temperature: float = Field(default=0.6, gt=0.0)
    weight: float = Field(default=0.5, ge=0.0)

    def evidence(self, query: str, texts: Sequence[str], cosines: Scores) -> Scores:
        """Float32 [n], higher is better: n candidates, their texts and cosines with the query."""
        scores = _standardised(cosines)
        if self.lexical_weight > 0.0:
            scores = scores + self.lexical_weight * _standardised(lexical_scores(query, texts))
        return scores

    def mean(self, vectors: Vectors, evidence: Scores) -> Vectors:
        """Float32 [dim]: the mean of the candidates' vectors [n, dim], weighted."""
        weights = np.exp((evidence - evidence.max()) / self.temperature)
        mean: Vectors = (weights / weights.sum()) @ vectors
        return mean.astype(np.float32, copy=False)


def lexical_scores(query: str, texts: Sequence[str]) -> Scores:
    """BM25 of each text for the query, float32 [n], as if these texts were the whole collection.

    Words are runs of letters and digits, in lower case, without English stop words. All 0 where no
    word of the query is in any text, as with languages that are written without spaces.
    """
    import bm25s

    tokens = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
    (asked,) = bm25s.tokenize([query], stopwords="en", show_progress=False, return_ids=False)
    if not asked or not tokens.vocab:
        return np.zeros(len(texts), dtype=np.float32)
    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(tokens, show_progress=False)
    scores: Scores = index.get_scores(asked)
    return scores


def order(evidence: Scores) -> list[int]:
    """Places of the candidates, best first; equal ones stay in their order."""
    places: list[int] = np.argsort(-evidence, kind="stable").tolist()
    return places


def _standardised(scores: Scores) -> Scores:
    """Mean 0, deviation 1; all 0 where they are all the same."""
    scores = np.asarray(scores, dtype=np.float32)
    deviation = scores.std()
    standardised: Scores = (scores - scores.mean()) / (deviation if deviation > 1e-6 else 1.0)
    return standardised
