"""What a hybrid search and reranking bring on queries to a checked collection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from e2rank_rag.check.judge import POOLED, judged, pools
from e2rank_rag.check.lines import Place
from e2rank_rag.check.probe import Match
from e2rank_rag.check.queries import Queries
from e2rank_rag.check.variants import EmbeddedLayout
from e2rank_rag.evaluation.differences import Differences
from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.evaluation.systems import Comparison, SystemResult
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store.answers import batches
from e2rank_rag.store.connection import Connection
from e2rank_rag.store.opening import MEMORY
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.training.labels.teacher import Teacher
from e2rank_rag.words import Bm25

MOST_COPIED = 20_000
"""Documents of a collection without words that are copied into memory to search their words."""

BATCH = 256
AGAINST = "retrieve"


@dataclass(frozen=True)
class Gain:
    """Methods on one set of queries.

    measure: the one that the methods are compared by. judged: see `Queries`.
    words: where a hybrid search found the words: "collection", "copy" (they were added to a copy of
        the collection in memory) or "none".
    unjudged: queries that the judge did not order, or of the file that nobody judged.
    """

    queries: int
    judged: str
    measure: str
    words: str
    results: Mapping[str, SystemResult]
    differences: Differences
    unjudged: int = 0


@contextmanager
def searchable(
    connection: Connection, place: Place, match: Match, bm25: Bm25 | None, points: int
) -> Iterator[tuple[QdrantStore, str]]:
    """The collection as a store with the texts that were embedded, and where its words are.

    bm25: adds words to a copy in memory, where the collection has none.
    """
    layout = EmbeddedLayout.over(place.layout, match.variant)
    words = {} if place.words is None or not place.words.idf else _words_of(place)
    store = QdrantStore(
        connection.client, place.collection, layout=layout, vector_name=place.vector_name, **words
    )
    if store.hybrid:
        yield store, "collection"
    elif bm25 is None or points > MOST_COPIED:
        yield store, "none"
    else:
        copy = QdrantStore.open(MEMORY, place.collection, bm25=bm25)
        try:
            # The check has compared these vectors.
            copy.prepare(store.dim, fingerprint=match.recipe.document_fingerprint(match.digest))
            for ids in batches(list(store.ids()), BATCH):
                stored = store.get(ids, with_embeddings=True).values()
                kept = [(each.document, each.embedding) for each in stored]
                kept = [(document, vector) for document, vector in kept if vector is not None]
                if kept:
                    documents, vectors = zip(*kept, strict=True)
                    copy.upsert(documents, np.stack(vectors))
            yield copy, "copy"
        finally:
            copy.close()


def measure(
    encoder: Encoder,
    store: QdrantStore,
    queries: Queries,
    *,
    words: str,
    teacher: Callable[[], Teacher] | None = None,
    progress: bool = False,
) -> Gain:
    """Run the methods that the store and the model can run, and compare them with `retrieve`.

    encoder: makes the vectors of the store. teacher: opens the judge for queries without qrels.
    """
    name = f"nDCG@{POOLED}" if queries.judged == "judge" else "nDCG@10"
    grades = queries.qrels or {id: {} for id in queries.texts}
    comparison = Comparison(
        encoder, store, queries.texts, grades, measures=[name], progress=progress
    )
    results = {each: comparison.run(each) for each in _methods(encoder, store)}
    if teacher is not None:
        pooled = pools([result.rankings for result in results.values()])
        grades = asyncio.run(judged(teacher(), queries.texts, pooled, progress=progress))
        if not grades:
            raise ValueError("the judge ordered the documents of no query: see its server's log")
        results = {
            each: replace(
                result,
                by_query=evaluate_by_query(run_from_rankings(result.rankings), grades, [name]),
            )
            for each, result in results.items()
        }
    return Gain(
        queries=len(grades),
        judged=queries.judged,
        measure=name,
        words=words,
        results=results,
        differences=Differences.of({n: r.by_query for n, r in results.items()}, AGAINST),
        unjudged=queries.left_out + len(queries.texts) - len(grades),
    )


def _methods(encoder: Encoder, store: QdrantStore) -> list[str]:
    hybrid = ["hybrid"] if store.hybrid else []
    listwise = ["listwise"] if encoder.recipe.prompts.listwise is not None else []
    return [AGAINST, *hybrid, "evidence", *listwise]


def _words_of(place: Place) -> dict[str, Any]:
    assert place.words is not None
    return {"bm25": place.words.bm25, "bm25_name": place.words.vector_name}
