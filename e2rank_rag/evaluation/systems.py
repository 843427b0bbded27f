"""Methods compared on a dataset: retrieval, Rocchio and rerankers, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, TypedDict, Unpack, get_args

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

    seconds_per_query: wall time of encoding, searching and reranking, in batches of 16 queries.
    rankings: query id -> hits, best first, without embeddings.
    left_out: number of queries whose own document was removed (`own_documents`).
    """

    measures: dict[str, float]
    seconds_per_query: float
    rankings: dict[str, list[Hit]]
    left_out: int = 0


class MethodOptions(TypedDict, total=False):
    """Fields of `Comparison` that a caller may give by name."""

    reranker: Reranker | None
    retrieve_k: int
    expand: bool
    measures: Sequence[str]
    progress: bool


class SystemOptions(MethodOptions, total=False):
    """`MethodOptions`, and candidates."""

    candidates: Mapping[str, Sequence[str]] | None


def run_system(
    system: str,
    encoder: TextEncoder,
    store: Store,
    queries: Mapping[str, str],
    qrels: Qrels,
    **options: Unpack[SystemOptions],
) -> SystemResult:
    """Run one method and measure it, see `Comparison.run`; options: its other fields, by name."""
    return Comparison(encoder, store, queries, qrels, **options).run(system)


@dataclass(frozen=True)
class Comparison:
    """What several methods are compared on: `Comparison(encoder, store, queries, qrels).run(name)`.

    queries: query id -> text. qrels: query id -> document id -> grade.
    reranker: the reranker that the method "rerank" runs.
    candidates: query id -> ids of documents to rank instead of searching; `retrieve` then orders
        them by plain cosine. A query without candidates has an empty ranking and counts as 0.
    retrieve_k: candidates per query, 1 or more.
    expand: search a second time with the reranker's query vector; ValueError if it has none.
    measures: names as ir-measures writes them, see `evaluate`.
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

        Where a query is itself a document of the dataset (`own_documents`), that document is
        removed from its candidates before they are reranked.

        Raises:
            ValueError: an unknown method; "rerank" without a reranker; `expand` with a reranker
                that has no query vector.
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
                ranked = self._search(pipeline, batch, own)
                seconds += time.perf_counter() - started
                # Vectors of all rankings would take gigabytes: 6000 queries x 100 hits x 384.
                bare = [[replace(hit, embedding=None) for hit in hits] for hits in ranked]
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
    """Ids of queries that the store holds as a document with the same id and the same text.

    Queries that are judged against themselves are not among them. An equal id alone means nothing:
    datasets number queries and documents from 1.
    """
    ids = [id for id in queries if id not in qrels.get(id, {})]
    stored = _stored(store, ids)
    return {id for id, item in stored.items() if is_query(item.document, queries[id])}


def _stored(store: Store, ids: Sequence[str]) -> dict[str, StoredDocument]:
    """The stored documents with these ids; an id of a form that the store refuses has none."""
    try:
        return store.get(ids)
    except ValueError:
        if len(ids) == 1:
            return {}
    return {id: item for asked in ids for id, item in _stored(store, [asked]).items()}


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
            f"{RERANK!r} runs a reranker, got None; pass reranker=load_reranker(...), "
            f"or run one of {list(SYSTEMS)}"
        )
    return given
