"""Training lists from a dataset: what a search retrieves for each query, labelled by the qrels.

    embedded = Embedded.of_collection(encoder, collection)
    queries, qrels = collection.queries("train"), collection.qrels("train")
    lists = mine_lists(encoder, embedded, queries, qrels)
    write_examples("lists.jsonl.gz", lists.values())

A list keeps the order of retrieval, because a prompt in training must look like one in serving: it
begins with the documents that are retrieved first, relevant or not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from e2rank_rag.documents import BadRecord, is_query
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.training.word_index import WordIndex, fused
from e2rank_rag.types import Document, Embeddings, RankingExample, TextEncoder

logger = logging.getLogger(__name__)

NEAR_POSITIVE = 0.97
"""Cosine with a positive from which an unlabelled document counts as a copy of it."""

BLOCK = 256


@dataclass(frozen=True, slots=True)
class Embedded:
    """The documents of a dataset, and their vectors row by row, float32 [n, dim].

    words: the index of their words; with it lists hold what a hybrid search retrieves, None: what a
        dense search does.
    """

    documents: Sequence[Document]
    embeddings: Embeddings
    words: WordIndex | None = None

    @classmethod
    def of(cls, encoder: TextEncoder, documents: Sequence[Document]) -> Embedded:
        """Encode these documents."""
        return cls(documents, encoder.encode_documents([d.text for d in documents]))

    @classmethod
    def of_collection(cls, encoder: TextEncoder, collection: Collection) -> Embedded:
        """Encode all documents of a dataset, see `collection_documents`."""
        return cls.of(encoder, collection_documents(collection))


def collection_documents(collection: Collection) -> list[Document]:
    """All documents of a dataset. A warning counts the records that cannot be read as one."""
    bad: list[BadRecord] = []
    documents = list(collection.documents(on_bad=bad.append))
    if bad:
        logger.warning(
            "%d records of %s were left out, because they are not documents, the first in line "
            "%d: %s",
            len(bad),
            collection.corpus_path,
            bad[0].line,
            bad[0].reason,
        )
    return documents


def mine_lists(
    encoder: TextEncoder,
    embedded: Embedded,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, float]],
    *,
    depth: int = 100,
    first_negative: int = 0,
    add_missing: bool = True,
) -> dict[str, RankingExample]:
    """By query id, one list per query that has a relevant document, labelled by the qrels.

    depth: how many of the nearest documents, by exact cosine; with `embedded.words`, how many of
        the fusion of these and of as many by BM25. Unjudged ones are labelled 0, and left out where
        they copy a positive (`NEAR_POSITIVE`) or are the query itself (`is_query`).
    first_negative: leave out unjudged documents that were retrieved before this place (from 0). It
        is for sparse judgements, where the documents retrieved first are often relevant.
    add_missing: if no relevant document was retrieved, append the relevant ones, so that every list
        has one. If some were, the others stay out, as in serving.
    """
    rows = {document.id: row for row, document in enumerate(embedded.documents)}
    judged = {
        query: {rows[id]: grade for id, grade in qrels[query].items() if id in rows}
        for query in queries
        if query in qrels
    }
    asked = [query for query, grades in judged.items() if any(g > 0 for g in grades.values())]
    found = _retrieved(encoder, embedded, [queries[query] for query in asked], depth)
    examples = {}
    for query, places in zip(asked, found, strict=True):
        grades = judged[query]
        own = {row for row in places if is_query(embedded.documents[row], queries[query])}
        others = [row for row in places if row in grades or row not in own]
        kept = _without_doubtful(others, grades, embedded.embeddings, first_negative)
        if add_missing and not any(grades.get(row, 0) > 0 for row in kept):
            kept += [row for row, grade in grades.items() if grade > 0]
        examples[query] = RankingExample(
            queries[query],
            tuple(embedded.documents[row].text for row in kept),
            tuple(float(max(grades.get(row, 0), 0)) for row in kept),
            tuple(embedded.documents[row].id for row in kept),
            copies=tuple(embedded.documents[row].text for row in sorted(own - grades.keys())),
        )
    return examples


def _retrieved(
    encoder: TextEncoder, embedded: Embedded, queries: Sequence[str], depth: int
) -> list[list[int]]:
    """The rows that a search retrieves for each query, best first."""
    dense = nearest(encoder.encode_queries(queries), embedded.embeddings, depth)
    if embedded.words is None:
        return dense
    words = embedded.words.best(queries, depth)
    return [fused(*rankings, depth) for rankings in zip(dense, words, strict=True)]


def nearest(queries: Embeddings, documents: Embeddings, count: int) -> list[list[int]]:
    """The rows of the `count` nearest documents to each query, best first, by exact cosine."""
    count = min(count, len(documents))
    rows: list[list[int]] = []
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ documents.T
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        rows += np.take_along_axis(best, order, 1).tolist()
    return rows


def _without_doubtful(
    places: Sequence[int], grades: Mapping[int, float], vectors: Embeddings, first_negative: int
) -> list[int]:
    if not places:
        return []
    positives = [row for row, grade in grades.items() if grade > 0]
    closest = (vectors[places] @ vectors[positives].T).max(axis=1)
    return [
        row
        for place, row in enumerate(places)
        if row in grades or (place >= first_negative and closest[place] < NEAR_POSITIVE)
    ]
