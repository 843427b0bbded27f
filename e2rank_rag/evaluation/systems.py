"""Methods compared on a dataset: searches and rerankers, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Literal, TypedDict, Unpack, cast

from e2rank_rag.documents import is_query
from e2rank_rag.evaluation.metrics import DEFAULT_MEASURES, evaluate_by_query, means
from e2rank_rag.evaluation.runs import Qrels, ranked_ids, run_from_rankings
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.progress import ProgressReport
from e2rank_rag.rerankers import EvidenceReranker, ListwiseReranker, RocchioReranker
from e2rank_rag.types import Hit, HybridStore, Reranker, Store, StoredDocument, TextEncoder

Search = Literal["dense", "words", "hybrid"]
"""What retrieves: cosines, BM25, or both, fused by the store."""

RERANK = "rerank"
"""The method that runs the given reranker."""

BATCH_QUERIES = 16


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One method on one dataset.

    by_query: query id -> measure -> value, a fraction between 0 and 1, for each judged query.
    seconds_per_query: wall time of encoding, searching and reranking, the mean over the batches.
    rankings: query id -> hits, best first, without embeddings.
    left_out: number of queries whose own document was removed (`own_documents`).
    batch_seconds: wall time of each batch of queries.
    """

    by_query: dict[str, dict[str, float]]
    seconds_per_query: float
    rankings: dict[str, list[Hit]]
    left_out: int = 0
    batch_seconds: tuple[float, ...] = ()

    @property
    def measures(self) -> dict[str, float]:
        """The mean of each measure."""
        return means(self.by_query)


class MethodOptions(TypedDict, total=False):
    """Fields of `Comparison` that a caller may give by name."""

    reranker: Reranker | None
    hybrid: bool | None
    retrieve_k: int
    expand: bool
    measures: Sequence[str]
    batch_queries: int
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
    hybrid: whether every reranker gets the candidates of a hybrid search, or of the search by
        vectors; None: of a hybrid search where the store has words.
    candidates: query id -> ids of documents to rank instead of searching; `retrieve` then orders
        them by plain cosine. A query without candidates has an empty ranking and counts as 0.
    retrieve_k: candidates per query, 1 or more.
    expand: search a second time with the reranker's query vector; ValueError if it has none.
    measures: names as ir-measures writes them, see `evaluate`.
    batch_queries: how many queries are searched and reranked at once, 1 or more.
    """

    encoder: TextEncoder
    store: Store
    queries: Mapping[str, str]
    qrels: Qrels
    _: KW_ONLY
    reranker: Reranker | None = None
    hybrid: bool | None = None
    candidates: Mapping[str, Sequence[str]] | None = None
    retrieve_k: int = 100
    expand: bool = False
    measures: Sequence[str] = DEFAULT_MEASURES
    batch_queries: int = BATCH_QUERIES
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch_queries < 1:
            raise ValueError(f"batch_queries must be 1 or more, got {self.batch_queries}")

    def check(self, method: str) -> None:
        """Raise the ValueError of `run` for a method that cannot be run; nothing is searched."""
        with ExitStack() as opened:
            self._opened(method, opened)

    def run(self, method: str) -> SystemResult:
        """Run one of `METHODS` over the queries and measure it against the qrels.

        Where a query is itself a document of the dataset (`own_documents`), that document is
        removed from its candidates before they are reranked. Query vectors that the encoder has
        cached are dropped first, so that each method's time includes its own.

        Raises:
            ValueError: an unknown method; "rerank" without a reranker; `prompt` or `feedback` of a
                model without a listwise adapter or feedback; a method that searches words in a
                store without them, or with given candidates; `expand` with a reranker that has no
                query vector.
        """
        ids = list(self.queries)
        rankings: dict[str, list[Hit]] = {}
        seconds: list[float] = []
        with ExitStack() as opened:
            search = self._opened(method, opened)
            own = own_documents(self.store, self.queries, self.qrels)
            if self.candidates is not None:
                own &= {id for id in ids if id in self.candidates.get(id, ())}
            shown = opened.enter_context(
                ProgressReport(method, total=len(ids), shown=self.progress)
            )
            _forget_queries(self.encoder)
            for start in range(0, len(ids), self.batch_queries):
                batch = ids[start : start + self.batch_queries]
                started = time.perf_counter()
                ranked = search(batch, own)
                seconds.append(time.perf_counter() - started)
                # Vectors of all rankings would take gigabytes: 6000 queries x 100 hits x 384.
                bare = [[replace(hit, embedding=None) for hit in hits] for hits in ranked]
                rankings.update(zip(batch, bare, strict=True))
                shown.advance(len(batch))
        return SystemResult(
            by_query=evaluate_by_query(run_from_rankings(rankings), self.qrels, self.measures),
            seconds_per_query=sum(seconds) / max(len(ids), 1),
            rankings=rankings,
            left_out=len(own),
            batch_seconds=tuple(seconds),
        )

    def _opened(self, name: str, opened: ExitStack) -> Ranked:
        """What ranks query ids; `opened` closes what the method opens for itself."""
        method = METHODS.get(name)
        if method is None:
            raise ValueError(f"system must be one of {list(METHODS)}, got {name!r}")
        if method.search in ("words", "hybrid"):
            self._check_words(f"{name!r}")
        elif self.hybrid and method.search is None:
            self._check_words("hybrid=True")
        if method.search == "words":
            return self._by_words
        reranker = None if method.reranker is None else method.reranker(self, opened)
        hybrid = self.hybrid if method.search is None else method.search == "hybrid"
        pipeline = SearchPipeline(self.encoder, self.store, reranker)
        return partial(self._search, pipeline, hybrid)

    def _check_words(self, what: str) -> None:
        if self.candidates is not None:
            raise ValueError(
                f"{what} searches the words of the index, and with given candidates nothing is "
                "searched: leave one of the two out"
            )
        if not getattr(self.store, "hybrid", False):
            raise ValueError(
                f"{what} searches words, and {self.store.name} has none: index into another "
                "collection, opened with bm25=Bm25()"
            )

    def _search(
        self, pipeline: SearchPipeline, hybrid: bool | None, ids: Sequence[str], own: set[str]
    ) -> Sequence[Sequence[Hit]]:
        given = self.candidates
        return pipeline.search_batch(
            [self.queries[id] for id in ids],
            top_k=self.retrieve_k,
            retrieve_k=self.retrieve_k,
            expand=self.expand and pipeline.reranker is not None,
            candidates=None if given is None else [given.get(id, ()) for id in ids],
            exclude=[{id} & own for id in ids],
            hybrid=hybrid,
        )

    def _by_words(self, ids: Sequence[str], own: set[str]) -> Sequence[Sequence[Hit]]:
        # One more, for queries whose own document is removed.
        store = cast(HybridStore, self.store)
        texts = [self.queries[id] for id in ids]
        found = store.search_words_batch(texts, top_k=self.retrieve_k + 1)
        return [
            [hit for hit in hits if hit.document.id not in {id} & own][: self.retrieve_k]
            for id, hits in zip(ids, found, strict=True)
        ]


def _forget_queries(encoder: TextEncoder) -> None:
    from e2rank_rag.models.encoder import Encoder

    if isinstance(encoder, Encoder):
        encoder.forget_queries()


Ranked = Callable[[Sequence[str], set[str]], Sequence[Sequence[Hit]]]
"""Ranks query ids; the second argument holds the queries whose own document is left out."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a method makes its rankings.

    search: what it searches by; None: it reranks the candidates of the comparison.
    reranker: makes its reranker, and puts what has to be closed on the stack.
    """

    search: Search | None = None
    reranker: Callable[[Comparison, ExitStack], Reranker] | None = None


def _feedback(comparison: Comparison, _: ExitStack) -> Reranker:
    if comparison.encoder.feedback is None:
        raise ValueError(
            "'feedback' is the model's own feedback without its prompt, and this model has none in "
            "its recipe: leave the method out; 'evidence' needs none"
        )
    # With the whole weight on the query no prompt is read.
    return ListwiseReranker(comparison.encoder, query_weight=1.0, evidence=False)


def _untrained(comparison: Comparison, opened: ExitStack) -> Reranker:
    from e2rank_rag.models.encoder import Encoder

    encoder = comparison.encoder
    if not isinstance(encoder, Encoder) or encoder.recipe.adapter is None:
        raise ValueError(
            "'prompt' is the model without its listwise adapter, and this model has none: its own "
            "prompt is the method 'listwise'"
        )
    return ListwiseReranker(opened.enter_context(encoder.without_adapter()))


def _given(comparison: Comparison, _: ExitStack) -> Reranker:
    if comparison.reranker is None:
        others = [name for name in METHODS if name != RERANK]
        raise ValueError(
            f"{RERANK!r} runs a reranker, got None; pass reranker=load_reranker(...), "
            f"or run one of {others}"
        )
    return comparison.reranker


METHODS: Mapping[str, Method] = {
    "retrieve": Method("dense"),
    "bm25": Method("words"),
    "hybrid": Method("hybrid"),
    "rocchio": Method(reranker=lambda comparison, _: RocchioReranker(comparison.encoder)),
    "feedback": Method(reranker=_feedback),
    "prompt": Method(reranker=_untrained),
    "listwise": Method(reranker=lambda comparison, _: ListwiseReranker(comparison.encoder)),
    "evidence": Method(reranker=lambda comparison, _: EvidenceReranker(comparison.encoder)),
    RERANK: Method(reranker=_given),
}
"""Every method by its name."""


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
