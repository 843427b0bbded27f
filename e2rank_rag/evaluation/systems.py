"""What models are worth on a collection: retrieval, Rocchio, rerankers, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from e2rank_rag.documents import is_query
from e2rank_rag.evaluation.metrics import DEFAULT_MEASURES, evaluate
from e2rank_rag.evaluation.runs import Qrels, ranked_ids, run_from_rankings
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.progress import ProgressReport
from e2rank_rag.rerankers import ListwiseReranker, RocchioReranker
from e2rank_rag.types import Hit, Reranker, Store, StoredDocument, TextEncoder

SystemName = Literal["retrieve", "rocchio", "listwise"]
SYSTEMS: tuple[str, ...] = get_args(SystemName)
"""What an encoder can do alone."""

RERANK = "rerank"
"""The system that a reranker of the caller is."""

BATCH_QUERIES = 16


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system on one collection. measures: fractions between 0 and 1.

    seconds_per_query: encoding, searching and reranking, wall time over batches of 16 queries.
    rankings: per query, best first, without embeddings.
    left_out: queries whose own document was left out of their ranking, see `own_documents`.
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
    *,
    reranker: Reranker | None = None,
    candidates: Mapping[str, Sequence[str]] | None = None,
    retrieve_k: int = 100,
    expand: bool = False,
    measures: Sequence[str] = DEFAULT_MEASURES,
    progress: bool = False,
) -> SystemResult:
    """Run one of `SYSTEMS`, or "rerank", over the queries and measure it against the qrels.

    Where a query is a document of the collection, that document is no answer to it: it is left out
    before anything is reranked (`own_documents`).

    reranker: what "rerank" is.
    candidates: per query, ids of documents to rank instead of searching; `retrieve` then means the
        query's own cosine on them. A query without candidates ranks nothing and counts as zero.
    expand: rerankers search a second time with their own vector; ValueError where they have none.
    """
    chosen = _reranker(system, encoder, reranker)
    pipeline = SearchPipeline(encoder, store, chosen)
    ids = list(queries)
    own = own_documents(store, queries, qrels)
    if candidates is not None:
        own &= {id for id in ids if id in candidates.get(id, ())}
    rankings: dict[str, list[Hit]] = {}
    seconds = 0.0
    with ProgressReport(system, total=len(ids), shown=progress) as shown:
        for start in range(0, len(ids), BATCH_QUERIES):
            batch = ids[start : start + BATCH_QUERIES]
            given = None if candidates is None else [candidates.get(id, ()) for id in batch]
            started = time.perf_counter()
            found = pipeline.search_batch(
                [queries[id] for id in batch],
                top_k=retrieve_k,
                retrieve_k=retrieve_k,
                expand=expand and chosen is not None,
                candidates=given,
                exclude=[{id} & own for id in batch],
            )
            seconds += time.perf_counter() - started
            # Vectors of all rankings would take gigabytes: 6000 queries x 100 hits x 384 numbers.
            bare = [[replace(hit, embedding=None) for hit in hits] for hits in found]
            rankings.update(zip(batch, bare, strict=True))
            shown.advance(len(batch))
    return SystemResult(
        measures=evaluate(run_from_rankings(rankings), qrels, measures),
        seconds_per_query=seconds / max(len(ids), 1),
        rankings=rankings,
        left_out=len(own),
    )


def own_documents(store: Store, queries: Mapping[str, str], qrels: Qrels) -> set[str]:
    """The queries that are documents of the store, with the same id and the same text, and that
    nobody judged for themselves. (The same id alone says nothing: collections number both from 1.)
    """
    ids = [id for id in queries if id not in qrels.get(id, {})]
    stored = _held(store, ids)
    return {id for id, item in stored.items() if is_query(item.document, queries[id])}


def _held(store: Store, ids: Sequence[str]) -> dict[str, StoredDocument]:
    """The documents under these ids, some of which may be no ids that this store can have."""
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
        raise ValueError(
            f"{RERANK!r} is the ranking of a reranker: give one, as load_reranker does"
        )
    return given
