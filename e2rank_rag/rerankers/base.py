"""What every reranker offers: one method, `rerank_batch`, and the forms of its call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from e2rank_rag.candidates import Candidates, checked_lists
from e2rank_rag.closing import Closable
from e2rank_rag.rerankers.explaining import VectorSum, WordParts, explained
from e2rank_rag.rerankers.ranking import score_lists
from e2rank_rag.threads import one_team
from e2rank_rag.types import Embeddings, Hit, PromptUsage, T, TextEncoder
from e2rank_rag.vectors import CandidateVectors, StoredVectors, VectorCounts


@dataclass(frozen=True, slots=True)
class RerankReport:
    """What one call read.

    vectors: how many document vectors were reused and encoded.
    prompts: what each prompt held. A cross-encoder has one prompt per pair; the usage of a query is
        their sum.
    """

    vectors: VectorCounts
    prompts: tuple[PromptUsage, ...]


class Reranking(list[list[Hit]]):
    """The rankings of one call, one per query, best first: a list with more attributes.

    report: what the call read.
    vectors: the reranking vectors, float32 [n, dim]; zero for a query without candidates. With them
        `VectorReranker.score` gives these scores. None if the scores do not come from one vector
        per query: with windows, a ResRank or a cross-encoder.
    made: what each reranking vector is the sum of, where the call was to `explain`; None for a
        query without candidates. Empty otherwise, and where there are no such vectors.
    """

    def __init__(
        self,
        rankings: Iterable[list[Hit]],
        report: RerankReport,
        vectors: Embeddings | None = None,
        made: Sequence[VectorSum | None] = (),
    ) -> None:
        super().__init__(rankings)
        self.report = report
        self.vectors = vectors
        self.made = made


Lists = Sequence[list[Hit]]
"""Candidates, one list per query."""


class Ordered(NamedTuple):
    """The result for lists that all have candidates; the fields are those of `Reranking`."""

    rankings: list[list[Hit]]
    prompts: tuple[PromptUsage, ...]
    vectors: Embeddings | None = None
    made: Callable[[], Sequence[VectorSum]] | None = None


class BaseReranker(Closable):
    """A reranker of any system. Its `close` frees the model, unless another object uses it too.

    vectors: gives the candidates their vectors; None if the reranker reads no vectors.
    """

    vectors: CandidateVectors | None = None

    @one_team
    def rerank_batch(
        self,
        queries: Sequence[str],
        candidates: Sequence[Candidates],
        *,
        query_vectors: Embeddings | None = None,
        explain: bool = False,
    ) -> Reranking:
        """Every document once, with its new score, best first. Inputs are not changed.

        candidates: one list per query, of hits or of strings. A string becomes a document whose id
            is its place in the list, "0", "1", ..., so equal strings stay two documents. Its
            `retrieval_score` is NaN. Among hits with the same id, the one with the highest score
            is ranked.
        query_vectors: [n, dim], the vectors of these queries from the reranker's encoder; None:
            the queries are encoded here if needed.
        explain: give each hit an `Explanation` of its score and rank.

        Raises StoredVectorMismatch if another model made the candidates' vectors.
        """
        rankings, counts = self._attach(checked_lists(queries, candidates))
        # A query without candidates costs no prompt.
        rows = [row for row, hits in enumerate(rankings) if hits]
        if not rows:
            vectors = None
            if self.vectors is not None:
                dim = self.vectors.encoder.dim
                vectors = np.zeros((len(rankings), dim), dtype=np.float32)
            return Reranking(rankings, RerankReport(counts, ()), vectors)
        asked = None if query_vectors is None else query_vectors[rows]
        ordered = self._order(
            [queries[row] for row in rows], [rankings[row] for row in rows], asked
        )
        before = rankings.copy()
        for row, ranking in zip(rows, ordered.rankings, strict=True):
            rankings[row] = ranking
        vectors = ordered.vectors
        if vectors is not None and len(rows) < len(rankings):
            vectors = np.zeros((len(rankings), vectors.shape[1]), dtype=np.float32)
            vectors[rows] = ordered.vectors
        report = RerankReport(counts, ordered.prompts)
        if not explain:
            return Reranking(rankings, report, vectors)
        made: list[VectorSum | None] = [None] * len(rankings)
        for row, each in zip(rows, ordered.made() if ordered.made else (), strict=False):
            made[row] = each
        rankings = self.explained(queries, rankings, before, made)
        return Reranking(rankings, report, vectors, made)

    def explained(
        self,
        queries: Sequence[str],
        rankings: Lists,
        before: Lists,
        made: Sequence[VectorSum | None],
    ) -> list[list[Hit]]:
        """Rankings of this reranker with an `Explanation` of each hit.

        before: the candidates as they were retrieved. made: what each reranking vector is the sum
        of, see `Reranking`; None where the scores are no sums.
        """
        rows = zip(queries, rankings, before, made, strict=True)
        return [
            explained(
                ranking,
                candidates,
                each,
                None if each is None else self._word_parts(query, ranking, each),
            )
            for query, ranking, candidates, each in rows
        ]

    def _word_parts(self, query: str, ranking: list[Hit], made: VectorSum) -> WordParts | None:
        """What words add to the scores of a ranking; None where the reranker reads none."""
        return None

    @abstractmethod
    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call in the model's thread, in which the model's methods do not have to wait."""

    def rerank(self, query: str, candidates: Candidates, *, explain: bool = False) -> list[Hit]:
        """The candidates of one query, best first; see `rerank_batch`."""
        return self.rerank_batch([query], [candidates], explain=explain)[0]

    async def arerank(
        self, query: str, candidates: Candidates, *, explain: bool = False
    ) -> list[Hit]:
        """`rerank` without blocking the event loop."""
        return (await self.arerank_batch([query], [candidates], explain=explain))[0]

    async def arerank_batch(
        self,
        queries: Sequence[str],
        candidates: Sequence[Candidates],
        *,
        query_vectors: Embeddings | None = None,
        explain: bool = False,
    ) -> Reranking:
        """`rerank_batch` without blocking the event loop."""
        call = partial(
            self.rerank_batch, queries, candidates, query_vectors=query_vectors, explain=explain
        )
        return await self.run_async(call)

    def _attach(self, lists: list[list[Hit]]) -> tuple[list[list[Hit]], VectorCounts]:
        """The candidates with the vectors that the reranker reads, and how many were reused."""
        return lists, VectorCounts(0, 0)

    @abstractmethod
    def _order(
        self, queries: Sequence[str], lists: Lists, query_vectors: Embeddings | None
    ) -> Ordered:
        """Rerank lists with at least one candidate each."""


class VectorReranker(BaseReranker):
    """A reranker that reads the candidates' vectors, and encodes missing ones."""

    vectors: CandidateVectors

    def __init__(self, encoder: TextEncoder, *, stored_vectors: StoredVectors = "check") -> None:
        self.vectors = CandidateVectors(encoder, stored_vectors)

    @property
    def encoder(self) -> TextEncoder:
        """Encodes texts, and probes stored vectors."""
        return self.vectors.encoder

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call in the encoder's thread."""
        return await self.encoder.run_async(call)

    @one_team
    def score(
        self,
        queries: Sequence[str],
        lists: Sequence[Sequence[Hit]],
        vectors: Embeddings,
        *,
        query_vectors: Embeddings | None = None,
    ) -> list[list[Hit]]:
        """Each list ranked by its query's reranking vector, as `rerank_batch` ranks with it.

        lists: candidates with their embeddings, such as the documents of two searches; a list may
            be empty. vectors: [n, dim], see `Reranking`. query_vectors: as in `rerank_batch`.
        """
        return score_lists(lists, vectors)

    def close(self) -> None:
        """Close the encoder."""
        self.encoder.close()

    def _attach(self, lists: list[list[Hit]]) -> tuple[list[list[Hit]], VectorCounts]:
        return self.vectors.attach(lists)
