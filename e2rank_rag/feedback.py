"""Pseudo-relevance feedback from a list of candidates, before a prompt reads any of them.

    places, added = Feedback().choose("who sang it?", texts, vectors @ query, vectors)
    shown = [texts[place] for place in places]   # what a prompt shows, best first
    better = query + added

The evidence for a candidate is its cosine plus its BM25 score over the candidates alone, so no
second index is needed. The mean of the candidates' vectors, weighted by the evidence, is added to
the query's vector, as in Rocchio 1971 with equal weights, and a listwise prompt shows the
candidates in the order of the evidence. It costs no forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Scores = NDArray[np.float32]
Vectors = NDArray[np.float32]


class Chosen(NamedTuple):
    """The candidates' places, best evidence first, and what is added to the reranking vector."""

    places: list[int]
    added: Vectors


class Feedback(BaseModel):
    """How candidates are weighed, and how much their mean counts.

    lexical_weight: factor of the BM25 scores; these and the cosines are standardised over the
        candidates, then added.
    temperature: divides the evidence before the softmax; with a lower value the best candidate
        counts more.
    weight: factor of the candidates' mean vector, which is added to the query's unit vector; with 0
        the evidence only decides which candidates a prompt shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lexical_weight: float = Field(default=0.8, ge=0.0)
    temperature: float = Field(default=0.6, gt=0.0)
    weight: float = Field(default=0.5, ge=0.0)

    def choose(self, query: str, texts: Sequence[str], cosines: Scores, vectors: Vectors) -> Chosen:
        """The order of n candidates, and their mean vector times `weight`, float32 [dim].

        cosines: [n], with the query. vectors: the candidates', [n, dim].
        """
        evidence = self.evidence(query, texts, cosines)
        return Chosen(order(evidence), self.weight * self.mean(vectors, evidence))

    def evidence(self, query: str, texts: Sequence[str], cosines: Scores) -> Scores:
        """The evidence for n candidates, float32 [n], higher is better, given their cosines [n]."""
        scores = _standardised(cosines)
        if self.lexical_weight > 0.0:
            scores = scores + self.lexical_weight * _standardised(lexical_scores(query, texts))
        return scores

    def mean(self, vectors: Vectors, evidence: Scores) -> Vectors:
        """The mean of the vectors [n, dim], weighted by their evidence [n]: float32 [dim]."""
        weights = np.exp((evidence - evidence.max()) / self.temperature)
        mean: Vectors = (weights / weights.sum()) @ vectors
        return mean.astype(np.float32, copy=False)


def lexical_scores(query: str, texts: Sequence[str]) -> Scores:
    """BM25 scores of the texts for the query, float32 [n], as if they were the whole corpus.

    Words are runs of letters and digits, in lower case, without English stop words. All scores are
    0 if no text holds a word of the query, as in languages that are written without spaces.
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
    """Indices of the candidates, best first; ties keep their order."""
    places: list[int] = np.argsort(-evidence, kind="stable").tolist()
    return places


def _standardised(scores: Scores) -> Scores:
    """Scores with mean 0 and deviation 1; all 0 if they are all equal."""
    scores = np.asarray(scores, dtype=np.float32)
    deviation = scores.std()
    standardised: Scores = (scores - scores.mean()) / (deviation if deviation > 1e-6 else 1.0)
    return standardised
