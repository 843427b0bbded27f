"""Reranking by a cross-encoder: one forward pass for each pair of query and candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from e2rank_rag.candidates import Candidates, checked_lists
from e2rank_rag.rerankers.base import BaseReranker, Reranking, RerankReport
from e2rank_rag.rerankers.ranking import rank
from e2rank_rag.types import Embeddings, PairRanker, T
from e2rank_rag.vectors import VectorCounts


class CrossEncoderReranker(BaseReranker):
    """Scores each candidate's text with the query, as RankT5 does. Vectors are not read.

    model: scores pairs, such as `CrossEncoder`, with one forward pass for each candidate. The
        scores are not cosines.
    """

    def __init__(self, model: PairRanker) -> None:
        self.model = model

    def rerank_batch(
        self,
        queries: Sequence[str],
        candidates: Sequence[Candidates],
        *,
        query_vectors: Embeddings | None = None,
    ) -> Reranking:
        """See `BaseReranker.rerank_batch`; `query_vectors` are not read."""
        rankings = checked_lists(queries, candidates)
        # A query without candidates costs no prompt.
        rows = [row for row, hits in enumerate(rankings) if hits]
        scored = self.model.score(
            [queries[row] for row in rows],
            [[hit.document.text for hit in rankings[row]] for row in rows],
        )
        for row, scores in zip(rows, scored.scores, strict=True):
            rankings[row] = rank(rankings[row], scores)
        return Reranking(rankings, RerankReport(VectorCounts(0, 0), scored.usage))

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call in the model's thread."""
        return await self.model.run_async(call)

    def close(self) -> None:
        """Close the model."""
        self.model.close()
