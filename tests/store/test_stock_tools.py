"""Stock qdrant-haystack and langchain-qdrant work on the same points as QdrantStore."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager

import numpy as np
import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"  # importing haystack would write a file for it

from qdrant_client import QdrantClient

from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
from e2rank_rag.types import Document

haystack = pytest.importorskip("haystack")
haystack_types = pytest.importorskip("haystack.document_stores.types")
haystack_stores = pytest.importorskip("haystack_integrations.document_stores.qdrant")
haystack_retrievers = pytest.importorskip("haystack_integrations.components.retrievers.qdrant")
langchain_qdrant = pytest.importorskip("langchain_qdrant")
langchain_documents = pytest.importorskip("langchain_core.documents")
langchain_embeddings = pytest.importorskip("langchain_core.embeddings")

# Against [1, 0, 0]: cosines 1, 0.6 and 0.
VECTORS = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], dtype=np.float32)
QUERY = np.array([1, 0, 0], dtype=np.float32)
DOCUMENTS = [
    Document("north", "storm", {"year": 2024, "source": {"kind": "web"}}),
    Document("east", "fair", {"year": 2005}),
    Document("west", "strike", {}),
]


class WordEmbeddings(langchain_embeddings.Embeddings):
    """A vector per known text, as a model would give it."""

    vectors = {d.text: v.tolist() for d, v in zip(DOCUMENTS, VECTORS, strict=True)}  # noqa: RUF012

    def embed_query(self, text):
        return self.vectors[text]

    def embed_documents(self, texts):
        # langchain-qdrant embeds a text of its own to learn the dimension.
        return [self.vectors.get(text, [1.0, 0.0, 0.0]) for text in texts]


# Haystack. Its store opens its own client, and a folder has one at a time: take turns.


@contextmanager
def our_store(folder):
    store = QdrantStore.open(folder, "docs")
    yield store
    store.close()


@contextmanager
def haystack_store(folder):
    store = haystack_stores.QdrantDocumentStore(
        path=str(folder), index="docs", embedding_dim=3, similarity="cosine", progress_bar=False
    )
    yield store
    store.close()


def haystack_document(id, text, meta, vector):
    return haystack.Document(id=id, content=text, meta=meta, embedding=vector.tolist())


@pytest.fixture
def written_by_us(tmp_path):
    with our_store(tmp_path) as store:
        store.prepare(3, fingerprint="f1")
        store.upsert(DOCUMENTS, VECTORS)
    return tmp_path


@pytest.fixture
def written_by_haystack(tmp_path):
    with haystack_store(tmp_path) as store:
        store.write_documents(
            [
                haystack_document(d.id, d.text, dict(d.meta), vector)
                for d, vector in zip(DOCUMENTS, VECTORS, strict=True)
            ]
        )
    return tmp_path


def test_haystack_retrieves_ours_with_id_text_meta_and_vector(written_by_us):
    with haystack_store(written_by_us) as store:
        retriever = haystack_retrievers.QdrantEmbeddingRetriever(
            store, return_embedding=True, scale_score=False
        )
        found = retriever.run(query_embedding=QUERY.tolist(), top_k=3)["documents"]
    assert [Document(d.id, d.content, d.meta) for d in found] == DOCUMENTS
    np.testing.assert_allclose([d.embedding for d in found], VECTORS, atol=1e-6)
    assert [d.score for d in found] == pytest.approx([1.0, 0.6, 0.0], abs=1e-6)


def test_haystack_filters_ours(written_by_us):
    with haystack_store(written_by_us) as store:
        condition = {"field": "meta.year", "operator": ">=", "value": 2010}
        assert [d.id for d in store.filter_documents(condition)] == ["north"]


def test_haystack_overwrites_and_deletes_ours(written_by_us):
    with haystack_store(written_by_us) as store:
        calm = haystack_document("north", "calm", {"year": 2025}, VECTORS[2])
        store.write_documents([calm], policy=haystack_types.DuplicatePolicy.OVERWRITE)
        store.delete_documents(["east"])
        assert store.count_documents() == 2
    with our_store(written_by_us) as store:
        assert sorted(store.ids()) == ["north", "west"]
        stored = store.get(["north"], with_embeddings=True)["north"]
        assert stored.document == Document("north", "calm", {"year": 2025})
        np.testing.assert_allclose(stored.embedding, VECTORS[2], atol=1e-6)


def test_we_search_what_haystack_wrote(written_by_haystack):
    with our_store(written_by_haystack) as store:
        store.prepare(3, fingerprint="f1")
        hits = store.search(QUERY, top_k=3)
        assert [hit.document for hit in hits] == DOCUMENTS
        np.testing.assert_allclose([hit.embedding for hit in hits], VECTORS, atol=1e-6)
        assert [h.document.id for h in store.search(QUERY, top_k=3, filter={"year": 2005})] == [
            "east"
        ]
        assert [h.document.id for h in store.rescore(VECTORS[2], ["north", "west"])] == [
            "west",
            "north",
        ]
        assert store.fingerprint is None


def test_we_overwrite_and_delete_what_haystack_wrote(written_by_haystack):
    with our_store(written_by_haystack) as store:
        store.upsert([Document("north", "calm", {"year": 2025})], VECTORS[2:])
        store.update_meta([Document("west", "", {"kind": "news"})])
        store.delete(["east"])
        assert store.count() == 2
    with haystack_store(written_by_haystack) as store:
        found = {d.id: d for d in store.filter_documents()}
    assert {id: (d.content, d.meta) for id, d in found.items()} == {
        "north": ("calm", {"year": 2025}),
        "west": ("strike", {"kind": "news"}),
    }


# LangChain takes a client, so both sides share one in memory.


@pytest.fixture
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def written_by_langchain(client):
    """Its default keys and ids of its own; returns the ids in the order of DOCUMENTS."""
    QdrantStore(client, "docs", layout=LANGCHAIN_LAYOUT).prepare(3)
    store = langchain_qdrant.QdrantVectorStore(client, "docs", WordEmbeddings())
    return store.add_documents(
        [
            langchain_documents.Document(page_content=d.text, metadata=dict(d.meta))
            for d in DOCUMENTS
        ]
    )


def test_langchain_reads_ours(client):
    ours = QdrantStore(client, "docs")
    ours.prepare(3)
    ours.upsert(DOCUMENTS, VECTORS)
    store = langchain_qdrant.QdrantVectorStore(
        client=client,
        collection_name="docs",
        embedding=WordEmbeddings(),
        content_payload_key="content",
        metadata_payload_key="meta",
    )
    found = store.similarity_search_with_score("storm", k=3)
    assert [document.page_content for document, _ in found] == [d.text for d in DOCUMENTS]
    assert [score for _, score in found] == pytest.approx([1.0, 0.6, 0.0], abs=1e-6)
    assert dict(DOCUMENTS[0].meta).items() <= found[0][0].metadata.items()


def test_langchain_deletes_ours_by_point_id(client):
    ours = QdrantStore(client, "docs")
    ours.prepare(3)
    ours.upsert(DOCUMENTS, VECTORS)
    store = langchain_qdrant.QdrantVectorStore(
        client, "docs", WordEmbeddings(), content_payload_key="content", metadata_payload_key="meta"
    )
    store.delete([Layout().point_id("east")])
    assert sorted(ours.ids()) == ["north", "west"]


def test_we_search_get_and_rescore_what_langchain_wrote(client, written_by_langchain):
    north, east, west = (str(uuid.UUID(id)) for id in written_by_langchain)
    store = QdrantStore(client, "docs", layout=LANGCHAIN_LAYOUT)
    hits = store.search(QUERY, top_k=3)
    assert [hit.document for hit in hits] == [
        Document(id, d.text, d.meta) for id, d in zip((north, east, west), DOCUMENTS, strict=True)
    ]
    np.testing.assert_allclose([hit.embedding for hit in hits], VECTORS, atol=1e-6)
    assert store.get([east])[east].document.text == "fair"
    assert [h.document.id for h in store.rescore(VECTORS[2], [north, west])] == [west, north]
    assert [h.document.id for h in store.search(QUERY, top_k=3, filter={"year": 2005})] == [east]


def test_we_delete_and_overwrite_what_langchain_wrote(client, written_by_langchain):
    north, east, west = (str(uuid.UUID(id)) for id in written_by_langchain)
    store = QdrantStore(client, "docs", layout=LANGCHAIN_LAYOUT)
    store.delete([east])
    store.upsert([Document(north, "calm", {"year": 2025})], VECTORS[2:])
    assert sorted(store.ids()) == sorted([north, west])
    theirs = langchain_qdrant.QdrantVectorStore(client, "docs", WordEmbeddings())
    (document,) = theirs.get_by_ids([north])
    assert document.page_content == "calm"
    assert document.metadata["year"] == 2025
