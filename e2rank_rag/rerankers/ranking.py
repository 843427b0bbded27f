"""From scores to rankings, and long lists in windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from e2rank_rag.types import Embeddings, Hit, PromptUsage


def rank(candidates: Sequence[Hit], scores: Sequence[float] | np.ndarray) -> list[Hit]:
    """Candidates with new scores, best first; candidates with equal scores keep their order.

    The score before the first reranking is kept in `retrieval_score`.
    Raises ValueError for a NaN score, and if the numbers of scores and candidates differ.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(candidates),):
        raise ValueError(f"{len(candidates)} candidates came with scores of shape {values.shape}")
    if np.isnan(values).any():
        worst = candidates[int(np.isnan(values).argmax())].document.id
        raise ValueError(f"the score of document {worst!r} is NaN, which has no rank")
    order = np.argsort(-values, kind="stable")
    return [_rescored(candidates[i], float(values[i])) for i in order]


def rank_by_vectors(
    candidates: Sequence[Hit], vectors: Embeddings, query_vector: Embeddings
) -> list[Hit]:
    """Candidates, ranked by the cosines of their vectors [n, dim] with the query's vector [dim]."""
    return rank(candidates, cosines(vectors, query_vector))


def cosines(vectors: Embeddings, query_vector: Embeddings) -> NDArray[np.float32]:
    """The cosines of unit vectors [n, dim] with the query's [dim], float32 [n]."""
    # Not `@`: BLAS rounds a row by its place in the matrix, and equal texts would not tie.
    values: NDArray[np.float32] = np.einsum("nd,d->n", vectors, query_vector)
    return values


def score_by_vector(candidates: Sequence[Hit], vector: Embeddings) -> list[Hit]:
    """Candidates, each with its embedding, ranked by cosine with one vector [dim]."""
    return rank_by_vectors(candidates, stacked(candidates), vector)


def score_lists(lists: Sequence[Sequence[Hit]], vectors: Embeddings) -> list[list[Hit]]:
    """`score_by_vector` for each list and its vector; a list may be empty."""
    return [
        score_by_vector(hits, vector) if hits else []
        for hits, vector in zip(lists, vectors, strict=True)
    ]


def stacked(candidates: Sequence[Hit]) -> Embeddings:
    """The candidates' vectors, float32 [n, dim]; ValueError for one that has none."""
    vectors = []
    for hit in candidates:
        if hit.embedding is None:
            raise ValueError(f"document {hit.document.id!r} came without an embedding")
        vectors.append(hit.embedding)
    return np.stack(vectors)


def unit(vectors: NDArray[np.floating]) -> Embeddings:
    """The rows [n, dim] scaled to unit length, float32."""
    scaled: Embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over the candidates, last to first, as in E2Rank's released evaluation.

    size: candidates in a window. step: how many candidates the window moves on, 1 to size.
    """

    size: int = 20
    step: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.size:
            raise ValueError(
                f"a window needs 1 <= step <= size, got step {self.step} and size {self.size}"
            )

    def starts(self, count: int) -> list[int]:
        """The first index of each window over `count` candidates, last window first."""
        first = max(0, count - self.size)
        return [*range(first, 0, -self.step), 0]


def slide(
    order: Callable[[list[int], list[list[Hit]]], tuple[list[list[Hit]], tuple[PromptUsage, ...]]],
    lists: Sequence[Sequence[Hit]],
    window: Window,
) -> tuple[list[list[Hit]], tuple[PromptUsage, ...]]:
    """Rerank the lists window by window; returns the rankings and what each prompt held.

    order: takes the indices of some lists and the part of each list inside the window; returns
        these parts, reranked, and what their prompts held.

    Scores of two windows are not comparable, so a score that is higher than that of the rank
    before is lowered to it.
    """
    rankings = [list(hits) for hits in lists]
    starts = [window.starts(len(hits)) for hits in rankings]
    prompts: list[PromptUsage] = []
    for turn in range(max(map(len, starts), default=0)):
        rows = [row for row, places in enumerate(starts) if turn < len(places)]
        spans = [slice(starts[row][turn], starts[row][turn] + window.size) for row in rows]
        parts, used = order(rows, [rankings[r][span] for r, span in zip(rows, spans, strict=True)])
        prompts += used
        for row, span, part in zip(rows, spans, parts, strict=True):
            rankings[row][span] = part
    return [_falling(ranking) for ranking in rankings], tuple(prompts)


def _rescored(hit: Hit, score: float) -> Hit:
    first = hit.score if hit.retrieval_score is None else hit.retrieval_score
    return replace(hit, score=score, retrieval_score=first, explanation=None)


def _falling(ranking: Sequence[Hit]) -> list[Hit]:
    ceiling = float("inf")
    lowered = []
    for hit in ranking:
        ceiling = min(ceiling, hit.score)
        lowered.append(replace(hit, score=ceiling))
    return lowered
