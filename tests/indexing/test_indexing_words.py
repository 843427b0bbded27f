"""Indexing into a collection that is searched by words too."""

from __future__ import annotations

import pytest

from e2rank_rag.indexing import IndexReport, index_documents
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25
from tests.indexing.conftest import DOCUMENTS
from tests.kit import ids


@pytest.fixture
def store():
    store = QdrantStore.open(":memory:", "things", bm25=Bm25())
    yield store
    store.close()


def by_words(store, query):
    return sorted(ids(store.search_words_batch([query], top_k=20)[0]))


def without_words(store, documents):
    """Leave the documents as a tool writes them that knows only dense vectors."""
    points = [store.layout.point_id(document.id) for document in documents]
    store.client.delete_vectors(store.collection, vectors=["bm25"], points=points)


def test_documents_get_their_words(encoder, store):
    assert index_documents(DOCUMENTS, encoder, store) == IndexReport(added=7)
    assert by_words(store, "barking 3") == sorted(d.id for d in DOCUMENTS)
    assert by_words(store, "3") == ["d3"]


def test_a_changed_text_gets_new_words(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    changed = Document("d0", "a storm in the north", DOCUMENTS[0].meta)
    index_documents([changed], encoder, store)
    assert by_words(store, "storm") == ["d0"]
    assert by_words(store, "cats") == sorted(d.id for d in DOCUMENTS[1:])


def test_indexing_again_adds_lacking_words_without_encoding(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    without_words(store, DOCUMENTS[:3])
    encoder.documents.clear()
    other_meta = Document("d1", DOCUMENTS[1].text, {"place": 99})
    report = index_documents([DOCUMENTS[0], other_meta, *DOCUMENTS[2:]], encoder, store)
    assert report == IndexReport(meta_updated=1, unchanged=6, words_added=3)
    assert encoder.documents == []
    assert by_words(store, "cats") == sorted(d.id for d in DOCUMENTS)
    assert index_documents(DOCUMENTS[2:], encoder, store) == IndexReport(unchanged=5)


def test_a_document_without_words_is_unchanged(encoder, store):
    documents = [*DOCUMENTS, Document("stopped", "the and of")]
    index_documents(documents, encoder, store)
    assert index_documents(documents, encoder, store) == IndexReport(unchanged=8)


def test_a_collection_of_vectors_alone_is_left_alone(encoder):
    store = QdrantStore.open(":memory:", "dense")
    index_documents(DOCUMENTS, encoder, store)
    assert index_documents(DOCUMENTS, encoder, store) == IndexReport(unchanged=7)
    assert not store.hybrid
    store.close()


def test_an_index_of_vectors_alone_gets_words_without_encoding(encoder):
    dense = QdrantStore.open(":memory:", "things")
    index_documents(DOCUMENTS, encoder, dense)
    encoder.documents.clear()
    store = QdrantStore(dense.client, "things", bm25=Bm25())
    store.add_words()
    store.add_words()
    assert index_documents(DOCUMENTS, encoder, store) == IndexReport(unchanged=7, words_added=7)
    assert encoder.documents == []
    assert by_words(QdrantStore(dense.client, "things"), "3") == ["d3"]
    dense.close()
