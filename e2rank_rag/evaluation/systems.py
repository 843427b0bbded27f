"""Methods compared on a dataset: retrieval, Rocchio and rerankers, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, get_args

from e2rank_rag.documents import is_query
from e2rank_rag.evaluation.metrics import DEFAULT_MEASURES, evaluate
from e2rank_rag.evaluation.runs import Qrels, ranked_ids, run_from_rankings
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.progress import ProgressReport
from e2rank_rag.rerankers import ListwiseReranker, RocchioReranker
from e2rank_rag.types import Hit, Reranker, Store, StoredDocument, TextEncoder

SystemName = Literal["retrieve", "rocchio", "listwise"]
SYSTEMS: tuple[str, ...] = get_args(SystemName)
"""The methods that need an encoder only."""

RERANK = "rerank"
"""The method that runs the given reranker."""

BATCH_QUERIES = 16


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One method on one dataset. measures: fractions between 0 and 1.

    seconds_per_query: encoding, searching and reranking, wall time over batches of 16 queries.
    rankings: per query, best first, without embeddings.
    left_out: number of queries whose own document was removed, see `own_documents`.
    """

    measures: dict[str, float]
    seconds_per_query: float
    rankings: dict[str, list[Hit]]
    left_out: int = 0


def run_system(
    system: str,
    encoder: TextEncoder,
    store: Store,
    queries: Mapping[str, str],
    qrels: Qrels,
    **options: Any,
) -> SystemResult:
    """Run one method and measure it; options: the other fields of `Comparison`, by name."""
    return Comparison(encoder, store, queries, qrels, **options).run(system)


@dataclass(frozen=True)
class Comparison:
    """What several methods are compared on: `Comparison(encoder, store, queries, qrels).run(name)`.

    reranker: what the method "rerank" runs.
    candidates: per query, ids of documents to rank instead of searching; `retrieve` then orders
        them by plain cosine. A query without candidates has an empty ranking and counts as 0.
    retrieve_k: candidates per query.
    expand: rerankers search a second time with their query vector; ValueError if they have none.
    """

    encoder: TextEncoder
    store: Store
    queries: Mapping[str, str]
    qrels: Qrels
    _: KW_ONLY
    reranker: Reranker | None = None
    candidates: Mapping[str, Sequence[str]] | None = None
    retrieve_k: int = 100
    expand: bool = False
    measures: Sequence[str] = DEFAULT_MEASURES
    progress: bool = False

    def run(self, method: str) -> SystemResult:
        """Run one of `SYSTEMS`, or "rerank", over the queries and measure it against the qrels.

        A query that is itself a document of the dataset gets that document removed from its
        candidates before they are reranked (`own_documents`).
        """
        reranker = _reranker(method, self.encoder, self.reranker)
        pipeline = SearchPipeline(self.encoder, self.store, reranker)
        ids = list(self.queries)
        own = own_documents(self.store, self.queries, self.qrels)
        if self.candidates is not None:
            own &= {id for id in ids if id in self.candidates.get(id, ())}
        rankings: dict[str, list[Hit]] = {}
        seconds = 0.0
        with ProgressReport(method, total=len(ids), shown=self.progress) as shown:
            for start in range(0, len(ids), BATCH_QUERIES):
                batch = ids[start : start + BATCH_QUERIES]
                started = time.perf_counter()
                found = self._search(pipeline, batch, own)
                seconds += time.perf_counter() - started
                # Vectors of all rankings would take gigabytes: 6000 queries x 100 hits x 384.
                bare = [[replace(hit, embedding=None) for hit in hits] for hits in found]
                rankings.update(zip(batch, bare, strict=True))
                shown.advance(len(batch))
        return SystemResult(
            measures=evaluate(run_from_rankings(rankings), self.qrels, self.measures),
            seconds_per_query=seconds / max(len(ids), 1),
            rankings=rankings,
            left_out=len(own),
        )

    def _search(
        self, pipeline: SearchPipeline, ids: Sequence[str], own: set[str]
    ) -> Sequence[Sequence[Hit]]:
        given = self.candidates
        return pipeline.search_batch(
            [self.queries[id] for id in ids],
            top_k=self.retrieve_k,
            retrieve_k=self.retrieve_k,
            expand=self.expand and pipeline.reranker is not None,
            candidates=None if given is None else [given.get(id, ()) for id in ids],
            exclude=[{id} & own for id in ids],
        )


def own_documents(store: Store, queries: Mapping[str, str], qrels: Qrels) -> set[str]:
    """The queries that are documents of the store, with the same id and the same text, and without
    a judgement for themselves. (An equal id alone means nothing: datasets number both from 1.)
    """
    ids = [id for id in queries if id not in qrels.get(id, {})]
    stored = _held(store, ids)
    return {id for id, item in stored.items() if is_query(item.document, queries[id])}


def _held(store: Store, ids: Sequence[str]) -> dict[str, StoredDocument]:
    """The documents with these ids. Some ids may have a form that this store cannot hold."""
    try:
        return store.get(ids)
    except ValueError:
        if len(ids) == 1:
            return {}
    return {id: item for asked in ids for id, item in _held(store, [asked]).items()}


def candidates_of_run(
    run: Mapping[str, Mapping[str, float]], *, depth: int = 100
) -> dict[str, list[str]]:
    """The first `depth` documents of each query of a run, best first."""
    return {query: ranked_ids(query, scores)[:depth] for query, scores in run.items()}


def _reranker(system: str, encoder: TextEncoder, given: Reranker | None) -> Reranker | None:
    if system == "retrieve":
        return None
    if system == "rocchio":
        return RocchioReranker(encoder)
    if system == "listwise":
        return ListwiseReranker(encoder)
    if system != RERANK:
        raise ValueError(f"system must be one of {[*SYSTEMS, RERANK]}, got {system!r}")
    if given is None:
        raise ValueError(f"{RERANK!r} runs a reranker: pass one, such as from load_reranker")
    return given
