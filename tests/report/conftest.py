"""Twelve documents, three queries, and what a search retrieves for them."""

from __future__ import annotations

import pytest

from e2rank_rag.evaluation.systems import Comparison
from e2rank_rag.indexing import index_documents
from e2rank_rag.report.records import MEASURE
from e2rank_rag.report.variants import Task
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25

WORDS = ["cats", "dogs", "birds", "ferries", "bread", "primes"]
TEXTS = {f"d{n}": f"{word} again" for n, word in enumerate(WORDS)} | {
    f"d{n}": f"a number of {word}, and {word} again" for n, word in enumerate(WORDS, start=6)
}
QUERIES = {"q0": "cats again", "q1": "what do birds do?", "q2": "number of dogs"}
QRELS = {"q0": {"d0": 1, "d6": 2}, "q1": {"d2": 1, "d8": 0}, "q2": {"d1": 1, "nowhere": 1}}


@pytest.fixture(scope="module")
def store(bert):
    store = QdrantStore.open(":memory:", "things", bm25=Bm25())
    index_documents([Document(id, text) for id, text in TEXTS.items()], bert, store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def task(bert, store):
    """The candidates of a hybrid search, and how the tiny model's prompt reranks them."""
    comparison = Comparison(bert, store, QUERIES, QRELS, measures=[MEASURE])
    before, after = comparison.run("hybrid"), comparison.run("listwise")
    return Task(store, QUERIES, QRELS, before.rankings, after.rankings)


@pytest.fixture(scope="module")
def reranker(bert):
    return ListwiseReranker(bert)
