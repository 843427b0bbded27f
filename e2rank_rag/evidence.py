"""What the words of a list's candidates say, and how it joins their cosines in the score.

    words = CandidateWords.of("who sang it?", texts, evidence.bm25)
    added = evidence.added(words, feedback.evidence(words, vectors @ query))
    scores = joined(vectors @ reranking_vector, added)

Everything is computed over the candidates of one list alone, so no second index is needed. A list
is split into words once, for feedback and for the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from e2rank_rag.words import Bm25

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CandidateWords:
    """The words of a query and its n candidates, counted; BM25 with the list as its corpus.

    There are m pairs of a candidate and a word that it holds, and v different words.

    asked: int [a], the query's different words. rows, words: int [m], from 0 to n - 1 and from 0 to
    v - 1. counts: float64 [m], how often the candidate holds the word. weights: float64 [m],
    `Bm25.weight` of these counts. lengths: int [n], in words. size: v, at least 1. stems: the words
    themselves, each with its number.
    """

    asked: NDArray[np.intp]
    rows: NDArray[np.intp]
    words: NDArray[np.intp]
    counts: NDArray[np.float64]
    weights: NDArray[np.float64]
    lengths: NDArray[np.intp]
    size: int
    stems: Mapping[str, int]

    @classmethod
    def of(cls, query: str, texts: Sequence[str], bm25: Bm25) -> Self:
        """Split the query and its candidates' texts into words, as `bm25` does for an index."""
        split = [bm25.counted(text) for text in texts]
        known: dict[str, int] = {}
        asked = {known.setdefault(word, len(known)) for word in bm25.counted(query).stems}
        words = [known.setdefault(word, len(known)) for each in split for word in each.stems]
        rows = np.repeat(np.arange(len(split)), [len(each.stems) for each in split])
        counts = np.array([*chain.from_iterable(each.counts for each in split)], dtype=np.float64)
        lengths = np.array([each.length for each in split], dtype=np.intp)
        return cls(
            asked=np.array(sorted(asked), dtype=np.intp),
            rows=rows,
            words=np.array(words, dtype=np.intp),
            counts=counts,
            weights=bm25.weight(counts, lengths[rows]),
            lengths=lengths,
            size=max(len(known), 1),
            stems=known,
        )

    def scores(self) -> Scores:
        """BM25 of each candidate for the query's different words, float32 [n].

        A word's idf is that of the list, ln(1 + (n - df + 0.5) / (df + 0.5)); its count weighs as
        in an index, see `Bm25.weight`. All scores are 0 if no candidate holds a word of the query,
        as in languages that are written without spaces.
        """
        return self._weighted(self.asked_weights())

    def asked_weights(self) -> NDArray[np.float64]:
        """The weight of each word in `scores`, [v]: 1 for those of the query."""
        weights = np.zeros(self.size)
        weights[self.asked] = 1.0
        return weights

    def expansion(self, evidence: Scores, *, documents: int = 8, terms: int = 50) -> Scores:
        """BM25 of each candidate for words that the query lacks, float32 [n]: RM3's expansion.

        The words are taken from the `documents` candidates with the most evidence [n], weighted by
        the softmax of their evidence: p(word) = sum of weight * count / length (Lavrenko and Croft
        2001). The `terms` words with the highest p * idf count, each in proportion to that value;
        the best counts like a word of the query. Left out are the query's words, and those that one
        candidate alone holds: they say nothing about any other. Words with equal values are taken
        in the order of the list.
        """
        return self._weighted(self.expansion_weights(evidence, documents=documents, terms=terms))

    def expansion_weights(
        self, evidence: Scores, *, documents: int, terms: int
    ) -> NDArray[np.float64]:
        """The weight of each word in `expansion`, [v]."""
        best = np.argsort(-evidence, kind="stable")[:documents]
        shares = np.zeros(len(self.lengths))
        shares[best] = np.exp(evidence[best] - evidence[best].max(initial=0.0))
        shares /= max(shares.sum(), 1e-12)
        mass = shares[self.rows] * self.counts / self.lengths[self.rows]
        values = np.bincount(self.words, mass, minlength=self.size) * self._idf
        values[self.asked] = 0.0
        values[self._holding < 2] = 0.0
        chosen = np.argsort(-values, kind="stable")[:terms]
        weights = np.zeros(self.size)
        weights[chosen] = values[chosen] / max(values.max(), 1e-12)
        return weights

    def held(self, row: int, weights: NDArray[np.float64]) -> dict[str, float]:
        """The words of one candidate that have a weight [v], and what each adds to its BM25 score.

        The heaviest come first. Their sum is the score that the weights give the candidate.
        """
        stems = list(self.stems)
        here = np.flatnonzero((self.rows == row) & (weights[self.words] > 0.0))
        numbers = self.words[here]
        values = self.weights[here] * (self._idf * weights)[numbers]
        order = np.argsort(-values, kind="stable")
        return {stems[numbers[place]]: float(values[place]) for place in order}

    @cached_property
    def _holding(self) -> NDArray[np.intp]:
        """How many candidates hold each word, [v]."""
        return np.bincount(self.words, minlength=self.size)

    @cached_property
    def _idf(self) -> NDArray[np.float64]:
        without = len(self.lengths) - self._holding
        idf: NDArray[np.float64] = np.log1p((without + 0.5) / (self._holding + 0.5))
        return idf

    def _weighted(self, weights: NDArray[np.float64]) -> Scores:
        """BM25 of each candidate for words with weights [v], float32 [n]."""
        parts = self.weights * (self._idf * weights)[self.words]
        return np.bincount(self.rows, parts, minlength=len(self.lengths)).astype(np.float32)


class Evidence(BaseModel):
    """What words add to the cosines of a list, in units of the cosines' deviation.

    words: weight of the candidates' BM25 scores for the query.
    expansion: weight of their BM25 scores for words of the best candidates, see
        `CandidateWords.expansion`.
    expansion_documents, expansion_terms: how many candidates these words are from, and how many
        words they are.
    language: of the texts, for stems and stop words: one of `words.LANGUAGES`, or None for words as
        they are. See `Bm25.of`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    words: float = Field(default=0.3, ge=0.0)
    expansion: float = Field(default=0.1, ge=0.0)
    expansion_documents: int = Field(default=8, ge=1)
    expansion_terms: int = Field(default=50, ge=1)
    language: str | None = "english"

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        return Bm25.of(language).language

    @property
    def bm25(self) -> Bm25:
        """What splits texts of this language into words."""
        return Bm25.of(self.language)

    def added(self, words: CandidateWords, evidence: Scores) -> Scores:
        """What n candidates get beside their standardised cosines, float32 [n].

        evidence: [n], `Feedback.evidence` with the plain query's cosines; it chooses the candidates
        whose words are added. Both scores are standardised over the candidates.
        """
        asked, expanded = self.parts(words, evidence)
        return asked + expanded

    def parts(self, words: CandidateWords, evidence: Scores) -> tuple[Scores, Scores]:
        """What the query's words and those of the expansion add: the summands of `added`, [n]."""
        asked = expanded = np.zeros(len(words.lengths), dtype=np.float32)
        if self.words > 0.0:
            asked = self.words * standardised(words.scores())
        if self.expansion > 0.0:
            scores = words.expansion(
                evidence, documents=self.expansion_documents, terms=self.expansion_terms
            )
            expanded = self.expansion * standardised(scores)
        return asked, expanded


def joined(cosines: Scores, added: Scores) -> Scores:
    """The scores of n candidates, float32 [n]: cosines [n] + their deviation * added [n].

    The order is that of the standardised cosines plus `added`; the scale stays that of the cosines,
    and one candidate alone keeps its cosine.
    """
    cosines = np.asarray(cosines, dtype=np.float32)
    scores: Scores = cosines + cosines.std() * np.asarray(added, dtype=np.float32)
    return scores


def standardised(scores: Scores) -> Scores:
    """Scores [n] with mean 0 and deviation 1, float32; all 0 if they are all equal."""
    scores = np.asarray(scores, dtype=np.float32)
    deviation = scores.std()
    values: Scores = (scores - scores.mean()) / (deviation if deviation > 1e-6 else 1.0)
    return values
