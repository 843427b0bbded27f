"""Rocchio: the query's vector, moved towards the vectors of the first documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from e2rank_rag.rerankers.base import Lists, Ordered, VectorReranker
from e2rank_rag.rerankers.explaining import VectorSum
from e2rank_rag.rerankers.ranking import score_lists, stacked, unit
from e2rank_rag.types import Embeddings, TextEncoder
from e2rank_rag.vectors import StoredVectors


class RocchioReranker(VectorReranker):
    """The baseline: pseudo-relevance feedback, with no forward pass but the query's.

    The reranking vector is query + beta * mean of the first documents' vectors: Rocchio 1971
    without negative feedback, on dense vectors.

    feedback_documents: how many documents are in the mean, at least 1. beta: at least 0.
    stored_vectors: see `StoredVectors`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        feedback_documents: int = 3,
        beta: float = 0.4,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        super().__init__(encoder, stored_vectors=stored_vectors)
        if feedback_documents < 1:
            raise ValueError(f"feedback_documents must be 1 or more, got {feedback_documents}")
        if beta < 0:
            raise ValueError(f"beta must be 0 or more, got {beta}")
        self.feedback_documents = feedback_documents
        self.beta = beta

    def _order(
        self, queries: Sequence[str], lists: Lists, query_vectors: Embeddings | None
    ) -> Ordered:
        if query_vectors is None:
            query_vectors = self.encoder.encode_queries(queries)
        means = [np.mean(stacked(hits[: self.feedback_documents]), axis=0) for hits in lists]
        vectors = unit(query_vectors + self.beta * np.stack(means))

        def made() -> list[VectorSum]:
            return [
                VectorSum(plain, hits, shares=self._shares(len(hits)), mean_weight=self.beta)
                for plain, hits in zip(query_vectors, lists, strict=True)
            ]

        return Ordered(score_lists(lists, vectors), (), vectors, made)

    def _shares(self, count: int) -> NDArray[np.float64]:
        first = np.arange(count) < self.feedback_documents
        shares: NDArray[np.float64] = first / first.sum()
        return shares
