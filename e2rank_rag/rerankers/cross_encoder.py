"""Reranking by a cross-encoder: one forward pass for each pair of query and candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from e2rank_rag.rerankers.base import BaseReranker, Lists, Ordered
from e2rank_rag.rerankers.ranking import rank
from e2rank_rag.types import Embeddings, PairRanker, T


class CrossEncoderReranker(BaseReranker):
    """Scores each candidate's text with the query, as RankT5 does. Vectors are not read.

    model: scores pairs, such as `CrossEncoder`, with one forward pass for each candidate. The
        scores are not cosines.
    """

    def __init__(self, model: PairRanker) -> None:
        self.model = model

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call in the model's thread."""
        return await self.model.run_async(call)

    def close(self) -> None:
        """Close the model."""
        self.model.close()

    def _order(
        self, queries: Sequence[str], lists: Lists, query_vectors: Embeddings | None
    ) -> Ordered:
        texts = [[hit.document.text for hit in hits] for hits in lists]
        scores, usage = self.model.score(queries, texts)
        return Ordered([rank(*each) for each in zip(lists, scores, strict=True)], usage)
