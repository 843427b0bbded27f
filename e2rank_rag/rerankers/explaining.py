"""Explanations: a reranking vector as a sum, and the scores of its ranking as sums of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from e2rank_rag.evidence import CandidateWords
from e2rank_rag.explanation import Explanation, Parts, Pull
from e2rank_rag.rerankers.ranking import stacked
from e2rank_rag.types import Embeddings, Hit, ListwiseEncoding

HEAVIEST = 5
"""How many documents of a mean, and words of an expansion, an explanation names."""


@dataclass(frozen=True, eq=False)
class VectorSum:
    """What a reranking vector is the sum of.

    query: the plain query's vector, [dim].
    candidates: the list as it was read, each with its embedding, n of them.
    prompt: the vector of the prompt, [dim]; None without one. query_weight: `a` of the blend
        `a * query + (1 - a) * prompt`, which is scaled to unit length. Without a prompt the query
        stands for the blend.
    shown: places of the candidates that the prompt held, in its order.
    shares: of the candidates in their mean, [n]; None without a mean. mean_weight: of that mean
        beside the blend, before both are scaled to unit length.
    """

    query: Embeddings
    candidates: Sequence[Hit]
    prompt: Embeddings | None = None
    query_weight: float = 0.0
    shown: Sequence[int] = ()
    shares: NDArray[np.floating] | None = None
    mean_weight: float = 0.0

    def summands(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The vectors of query and prompt, [dim] each, and of each candidate, [n, dim], scaled.

        Their sum is the reranking vector.
        """
        query = self.query.astype(np.float64)
        prompt = np.zeros_like(query)
        if self.prompt is not None:
            query, prompt = (
                self.query_weight * query,
                (1.0 - self.query_weight) * self.prompt.astype(np.float64),
            )
        length = np.linalg.norm(query + prompt)
        shares = np.zeros(len(self.candidates)) if self.shares is None else self.shares
        mean = (self.mean_weight * shares)[:, None] * stacked(self.candidates).astype(np.float64)
        query, prompt = query / length, prompt / length
        whole = np.linalg.norm(query + prompt + mean.sum(axis=0))
        return query / whole, prompt / whole, mean / whole

    def vector(self) -> Embeddings:
        """The reranking vector, float32 [dim]."""
        query, prompt, mean = self.summands()
        vector: Embeddings = (query + prompt + mean.sum(axis=0)).astype(np.float32)
        return vector

    def named(self) -> list[int]:
        """Places of the candidates that an explanation names."""
        if self.prompt is not None or self.shares is None:
            return list(self.shown)
        heaviest = np.argsort(-self.shares, kind="stable")[:HEAVIEST]
        return [place for place in heaviest.tolist() if self.shares[place] > 0.0]


class Shown(TypedDict, total=False):
    """The prompt of a `VectorSum`."""

    prompt: Embeddings
    query_weight: float
    shown: Sequence[int]


def prompts_of(encoding: ListwiseEncoding, places: Sequence[Sequence[int]]) -> list[Shown]:
    """The prompt of each list. places: of its candidates, in the order in which prompts show them.

    An encoder that says nothing of a blend is taken to have none.
    """
    if not encoding.usage:
        return [{} for _ in places]
    vectors = encoding.embeddings if encoding.prompts is None else encoding.prompts
    return [
        {
            "prompt": vector,
            "query_weight": encoding.query_weight,
            "shown": order[: usage.documents],
        }
        for vector, usage, order in zip(vectors, encoding.usage, places, strict=True)
    ]


class WordParts(NamedTuple):
    """What words add to the scores of a list.

    rows: each document's row, by id. words, expansion: their parts of the scores, [n].
    counted: the words of the list. weights: of the expansion's words, [v].
    """

    rows: Mapping[str, int]
    words: NDArray[np.floating]
    expansion: NDArray[np.floating]
    counted: CandidateWords
    weights: NDArray[np.float64]


def explained(
    ranking: Sequence[Hit],
    before: Sequence[Hit],
    made: VectorSum | None,
    words: WordParts | None = None,
) -> list[Hit]:
    """A ranking with explanations.

    before: the candidates as the reranker got them. made: the reranking vector; None: the scores
    are no sums of parts. words: None where the reranker reads none.
    """
    earlier = {hit.document.id: (place, hit.score) for place, hit in enumerate(before, start=1)}
    places = []
    for rank, hit in enumerate(ranking, start=1):
        rank_before, score_before = earlier.get(hit.document.id, (None, None))
        if score_before is not None and isnan(score_before):
            score_before = None
        places.append(Explanation(rank, hit.score, rank_before, score_before))
    if made is not None and ranking:
        places = _with_parts(places, ranking, made, words)
    return [replace(hit, explanation=place) for hit, place in zip(ranking, places, strict=True)]


def _with_parts(
    places: Sequence[Explanation], ranking: Sequence[Hit], made: VectorSum, words: WordParts | None
) -> list[Explanation]:
    vectors = stacked(ranking).astype(np.float64)
    query, prompt, mean = made.summands()
    from_each = vectors @ mean.T  # [documents, candidates]
    rows = [None if words is None else words.rows[hit.document.id] for hit in ranking]
    parts = [
        Parts(float(vector @ query), float(vector @ prompt), float(each.sum()), *_of(words, row))
        for vector, each, row in zip(vectors, from_each, rows, strict=True)
    ]
    average = Parts.average(parts)
    cosines = vectors @ made.query.astype(np.float64)
    return [
        replace(
            place,
            cosine=float(cosines[number]),
            parts=parts[number],
            average=average,
            pulls=_pulls(made, vectors[number], from_each[number]),
            words=_held(words, rows[number]),
            expansion_words=_expanded(words, rows[number]),
        )
        for number, place in enumerate(places)
    ]


def _pulls(
    made: VectorSum, vector: NDArray[np.float64], from_each: NDArray[np.float64]
) -> tuple[Pull, ...]:
    pulls = []
    for place in made.named():
        hit = made.candidates[place]
        assert hit.embedding is not None
        share = 0.0 if made.shares is None else float(made.shares[place])
        cosine = float(vector @ hit.embedding)
        shown = place in made.shown
        pulls.append(Pull(hit.document.id, shown, cosine, share, float(from_each[place])))
    return tuple(pulls)


def _of(words: WordParts | None, row: int | None) -> tuple[float, float]:
    if words is None or row is None:
        return 0.0, 0.0
    return float(words.words[row]), float(words.expansion[row])


def _held(words: WordParts | None, row: int | None) -> dict[str, float]:
    if words is None or row is None:
        return {}
    return words.counted.held(row, words.counted.asked_weights())


def _expanded(words: WordParts | None, row: int | None) -> dict[str, float]:
    if words is None or row is None:
        return {}
    held = words.counted.held(row, words.weights)
    return dict(list(held.items())[:HEAVIEST])
