"""ResRank: one pass over the query's text and one vector per candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from e2rank_rag.rerankers.base import Lists, Ordered, VectorReranker
from e2rank_rag.rerankers.ranking import Window, rank_by_vectors, slide, stacked
from e2rank_rag.types import Embeddings, Hit, PromptUsage
from e2rank_rag.vectors import StoredVectors

if TYPE_CHECKING:
    from e2rank_rag.models.resrank import ListModel


class ResidualReranker(VectorReranker):
    """Ranks by the cosines of vectors to which a ResRank has added its residuals.

    The text of a candidate is read only if it has no vector, or for the probe.

    window: reranks in windows, to compare fewer candidates at once, or for lists that need more
        positions than the model has (without a window these raise ValueError).
    stored_vectors: see `StoredVectors`.
    """

    def __init__(
        self,
        model: ListModel,
        *,
        window: Window | None = None,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        super().__init__(model.encoder, stored_vectors=stored_vectors)
        self.model = model
        self.window = window

    def close(self) -> None:
        """Close the model, and the encoder with it."""
        self.model.close()

    def _order(
        self, queries: Sequence[str], lists: Lists, query_vectors: Embeddings | None
    ) -> Ordered:
        def order(
            rows: list[int], parts: Sequence[list[Hit]]
        ) -> tuple[list[list[Hit]], tuple[PromptUsage, ...]]:
            encoded = self.model.encode_lists(
                [queries[row] for row in rows],
                [stacked(hits) for hits in parts],
                query_vectors=None if query_vectors is None else query_vectors[rows],
            )
            rankings = [
                rank_by_vectors(hits, vectors, query)
                for hits, vectors, query in zip(
                    parts, encoded.passages, encoded.queries, strict=True
                )
            ]
            return rankings, encoded.usage

        if self.window is not None:
            return Ordered(*slide(order, lists, self.window))
        return Ordered(*order(list(range(len(lists))), lists))
