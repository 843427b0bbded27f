"""Stock hybrid search, of qdrant-haystack and langchain-qdrant, on the same points as ours.

Ranks and scores are those of each tool's own retrievers, over `Bm25`.
"""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager

import numpy as np
import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"  # importing haystack would write a file for it

from qdrant_client import QdrantClient, models

from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25
from tests.kit import ids

haystack = pytest.importorskip("haystack")
haystack_types = pytest.importorskip("haystack.document_stores.types")
haystack_stores = pytest.importorskip("haystack_integrations.document_stores.qdrant")
haystack_retrievers = pytest.importorskip("haystack_integrations.components.retrievers.qdrant")
langchain_qdrant = pytest.importorskip("langchain_qdrant")
langchain_documents = pytest.importorskip("langchain_core.documents")
langchain_embeddings = pytest.importorskip("langchain_core.embeddings")

BM25 = Bm25()

# Cosines to QUERY: 1, 0.8, 0.6, 0. The words of QUESTION are in "west" (both) and "north" (one).
QUESTION = "strikes after the storm"
QUERY = np.float32([1, 0])
DOCUMENTS = [
    Document("north", "A storm in the north.", {"year": 2024}),
    Document("east", "A fair in the east.", {"year": 2005}),
    Document("south", "Peace in the south.", {"year": 1999}),
    Document("west", "A strike, and then a storm.", {"year": 1999}),
]
VECTORS = np.float32([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]])


# Haystack. Its store opens its own client, and a folder has one at a time: take turns.


@contextmanager
def our_store(folder):
    store = QdrantStore.open(
        folder, "docs", vector_name="text-dense", bm25=BM25, bm25_name="text-sparse"
    )
    yield store
    store.close()


@contextmanager
def haystack_store(folder):
    store = haystack_stores.QdrantDocumentStore(
        path=str(folder),
        index="docs",
        embedding_dim=2,
        similarity="cosine",
        use_sparse_embeddings=True,
        sparse_idf=True,
        progress_bar=False,
    )
    yield store
    store.close()


def sparse_embedding(vector):
    return haystack.dataclasses.SparseEmbedding(indices=vector.indices, values=vector.values)


def haystack_document(document, vector):
    (sparse,) = BM25.documents([document.text])
    return haystack.Document(
        id=document.id,
        content=document.text,
        meta=dict(document.meta),
        embedding=vector.tolist(),
        sparse_embedding=sparse_embedding(sparse),
    )


@pytest.fixture(params=["ours", "haystack's"])
def folder(request, tmp_path):
    """A folder that one of the two wrote."""
    if request.param == "ours":
        with our_store(tmp_path) as store:
            store.prepare(2, fingerprint="f1")
            store.upsert(DOCUMENTS, VECTORS)
    else:
        with haystack_store(tmp_path) as store:
            store.write_documents(list(map(haystack_document, DOCUMENTS, VECTORS)))
    return tmp_path


def haystack_words(folder, question=QUESTION, top_k=4):
    with haystack_store(folder) as store:
        retriever = haystack_retrievers.QdrantSparseEmbeddingRetriever(store, scale_score=False)
        query = sparse_embedding(BM25.query(question))
        return retriever.run(query_sparse_embedding=query, top_k=top_k)["documents"]


def haystack_hybrid(folder, top_k=4):
    with haystack_store(folder) as store:
        retriever = haystack_retrievers.QdrantHybridRetriever(store, return_embedding=True)
        return retriever.run(
            query_embedding=QUERY.tolist(),
            query_sparse_embedding=sparse_embedding(BM25.query(QUESTION)),
            top_k=top_k,
        )["documents"]


def test_haystack_and_we_rank_by_the_same_words(folder):
    theirs = haystack_words(folder)
    with our_store(folder) as store:
        (ours,) = store.search_words_batch([QUESTION], top_k=4)
    assert [d.id for d in theirs] == ids(ours) == ["west", "north"]
    assert [d.score for d in theirs] == pytest.approx([hit.score for hit in ours], rel=1e-6)
    assert [Document(d.id, d.content, d.meta) for d in theirs] == [hit.document for hit in ours]


def test_haystack_and_we_fuse_to_the_same_ranking(folder):
    theirs = haystack_hybrid(folder)
    with our_store(folder) as store:
        (ours,) = store.search_batch(QUERY[None], top_k=4, queries=[QUESTION])
        assert store.hybrid
    assert {d.id: d.score for d in theirs} == pytest.approx(
        {hit.document.id: hit.score for hit in ours}
    )
    # Ranks 0 and 1 for "north", 3 and 0 for "west".
    assert [hit.score for hit in ours[:2]] == pytest.approx([1 / 2 + 1 / 3, 1 / 5 + 1 / 2])
    np.testing.assert_allclose([d.embedding for d in theirs][:1], VECTORS[:1], atol=1e-6)


def test_each_sees_the_new_words_of_a_document_that_the_other_overwrites(folder):
    calm = Document("north", "Calm seas.", {"year": 2025})
    with our_store(folder) as store:
        store.upsert([calm], VECTORS[:1])
    assert [d.id for d in haystack_words(folder)] == ["west"]
    assert [d.id for d in haystack_words(folder, "calm sea")] == ["north"]
    fair = Document("west", "Fairs everywhere.", {})
    with haystack_store(folder) as store:
        policy = haystack_types.DuplicatePolicy.OVERWRITE
        store.write_documents([haystack_document(fair, VECTORS[3])], policy=policy)
    with our_store(folder) as store:
        found = store.search_words_batch(["fairs", "strike"], top_k=4)
    assert [sorted(ids(hits)) for hits in found] == [["east", "west"], []]


def test_without_our_word_a_sparse_vector_of_haystack_is_not_searched(tmp_path):
    with haystack_store(tmp_path) as store:
        store.write_documents(list(map(haystack_document, DOCUMENTS, VECTORS)))
    store = QdrantStore.open(tmp_path, "docs", vector_name="text-dense")
    assert (store.bm25, store.hybrid) == (None, False)
    assert ids(store.search(QUERY, top_k=2)) == ["north", "east"]
    store.close()


# LangChain takes a client, so both sides share one in memory.


class DenseEmbeddings(langchain_embeddings.Embeddings):
    vectors = {  # noqa: RUF012
        QUESTION: QUERY.tolist(),
        **{d.text: v.tolist() for d, v in zip(DOCUMENTS, VECTORS, strict=True)},
    }

    def embed_query(self, text):
        return self.vectors[text]

    def embed_documents(self, texts):
        # langchain-qdrant embeds a text of its own to learn the dimension.
        return [self.vectors.get(text, [1.0, 0.0]) for text in texts]


class SparseEmbeddings(langchain_qdrant.SparseEmbeddings):
    """`Bm25`, in place of langchain-qdrant's FastEmbedSparse."""

    def embed_query(self, text):
        return langchain_qdrant.SparseVector(**BM25.query(text)._asdict())

    def embed_documents(self, texts):
        return [langchain_qdrant.SparseVector(**v._asdict()) for v in BM25.documents(texts)]


@pytest.fixture
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


def langchain_store(client, mode, vector_name):
    return langchain_qdrant.QdrantVectorStore(
        client,
        "docs",
        DenseEmbeddings(),
        sparse_embedding=SparseEmbeddings(),
        retrieval_mode=mode,
        vector_name=vector_name,
        sparse_vector_name="langchain-sparse",
    )


def our_words(client, vector_name):
    return QdrantStore(
        client,
        "docs",
        layout=LANGCHAIN_LAYOUT,
        vector_name=vector_name or None,
        bm25=BM25,
        bm25_name="langchain-sparse",
    )


@pytest.fixture(params=["ours", "langchain's"])
def writer(request):
    return request.param


@pytest.mark.parametrize("vector_name", ["", "dense"])
@pytest.mark.parametrize("mode", ["HYBRID", "SPARSE"])
def test_langchain_and_we_rank_alike(client, writer, mode, vector_name):
    ours = our_words(client, vector_name)
    if writer == "ours":
        ours.prepare(2, fingerprint="f1")
        points = [Document(str(uuid.uuid4()), d.text, d.meta) for d in DOCUMENTS]
        ours.upsert(points, VECTORS)
    else:
        client.create_collection(
            "docs",
            vectors_config={vector_name: models.VectorParams(size=2, distance="Cosine")},
            sparse_vectors_config={
                "langchain-sparse": models.SparseVectorParams(modifier=models.Modifier.IDF)
            },
        )
    theirs = langchain_store(client, langchain_qdrant.RetrievalMode[mode], vector_name)
    if writer != "ours":
        hybrid = langchain_store(client, langchain_qdrant.RetrievalMode.HYBRID, vector_name)
        hybrid.add_documents(
            [
                langchain_documents.Document(page_content=d.text, metadata=dict(d.meta))
                for d in DOCUMENTS
            ]
        )
    found = {
        document.page_content: score
        for document, score in theirs.similarity_search_with_score(QUESTION, k=4)
    }
    if mode == "SPARSE":
        (hits,) = ours.search_words_batch([QUESTION], top_k=4)
        assert [hit.document.text for hit in hits] == [DOCUMENTS[3].text, DOCUMENTS[0].text]
    else:
        (hits,) = ours.search_batch(QUERY[None], top_k=4, queries=[QUESTION])
        assert len(hits) == 4
    assert {hit.document.text: hit.score for hit in hits} == pytest.approx(found)
    for hit in hits:
        row = [d.text for d in DOCUMENTS].index(hit.document.text)
        np.testing.assert_allclose(hit.embedding, VECTORS[row], atol=1e-6)


def test_a_document_that_we_overwrite_has_new_words_for_langchain(client):
    ours = our_words(client, "")
    ours.prepare(2)
    id = str(uuid.uuid4())
    ours.upsert([Document(id, DOCUMENTS[3].text)], VECTORS[3:])
    ours.upsert([Document(id, "Calm seas.")], VECTORS[3:])
    theirs = langchain_store(client, langchain_qdrant.RetrievalMode.SPARSE, "")
    assert theirs.similarity_search("strikes") == []
    assert [d.page_content for d in theirs.similarity_search("calm sea")] == ["Calm seas."]


def test_langchain_searches_our_own_layout(client):
    ours = QdrantStore(client, "docs", bm25=BM25)
    ours.prepare(2)
    ours.upsert(DOCUMENTS, VECTORS)
    theirs = langchain_qdrant.QdrantVectorStore(
        client,
        "docs",
        DenseEmbeddings(),
        sparse_embedding=SparseEmbeddings(),
        retrieval_mode=langchain_qdrant.RetrievalMode.HYBRID,
        sparse_vector_name="bm25",
        content_payload_key="content",
        metadata_payload_key="meta",
    )
    found = theirs.similarity_search(QUESTION, k=1)
    assert [d.page_content for d in found] == [DOCUMENTS[0].text]
    assert Layout().point_id("north") == found[0].metadata["_id"]
