"""Pseudo-relevance feedback from a list of candidates, before a prompt reads any of them.

    words = CandidateWords.of("who sang it?", texts, bm25)
    places, added, _ = Feedback().choose(words, vectors @ query, vectors)
    shown = [texts[place] for place in places]   # what a prompt shows, best first
    better = query + added

The evidence for a candidate is its cosine plus its BM25 score over the candidates alone, so no
second index is needed. The mean of the candidates' vectors, weighted by the evidence, is added to
the query's vector, as in Rocchio 1971 with equal weights, and a listwise prompt shows the
candidates in the order of the evidence. It costs no forward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from e2rank_rag.evidence import CandidateWords, Scores, standardised

Vectors = NDArray[np.float32]


class Chosen(NamedTuple):
    """The candidates' places, best evidence first, and what is added to the reranking vector.

    evidence: [n], for `Feedback.shares`.
    """

    places: list[int]
    added: Vectors
    evidence: Scores


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

    def choose(self, words: CandidateWords, cosines: Scores, vectors: Vectors) -> Chosen:
        """The order of n candidates, and their mean vector times `weight`, float32 [dim].

        cosines: [n], with the query. vectors: the candidates', [n, dim].
        """
        evidence = self.evidence(words, cosines)
        return Chosen(order(evidence), self.weight * self.mean(vectors, evidence), evidence)

    def evidence(self, words: CandidateWords, cosines: Scores) -> Scores:
        """The evidence for n candidates, float32 [n], higher is better, given their cosines [n]."""
        scores = standardised(cosines)
        if self.lexical_weight > 0.0:
            scores = scores + self.lexical_weight * standardised(words.scores())
        return scores

    def mean(self, vectors: Vectors, evidence: Scores) -> Vectors:
        """The mean of the vectors [n, dim], weighted by their evidence [n]: float32 [dim]."""
        mean: Vectors = self.shares(evidence) @ vectors
        return mean.astype(np.float32, copy=False)

    def shares(self, evidence: Scores) -> Scores:
        """The weight of each candidate in the mean, [n]; they sum to 1."""
        weights = np.exp((evidence - evidence.max()) / self.temperature)
        shares: Scores = weights / weights.sum()
        return shares


def order(evidence: Scores) -> list[int]:
    """Indices of the candidates, best first; ties keep their order."""
    places: list[int] = np.argsort(-evidence, kind="stable").tolist()
    return places
