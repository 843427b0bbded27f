"""Reading a local client through our store while other tools write through the same client."""

from __future__ import annotations

import copy
import itertools
import threading
import time
import zlib

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
from e2rank_rag.types import Document

DIM = 16
ROWS = np.random.default_rng(0).normal(size=(64, DIM))
QUERY = ROWS[0].astype(np.float32)


def raw_writer(location):
    client = QdrantClient(**location, force_disable_check_same_thread=True)
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("docs", params)

    def write(numbers):
        points = [
            models.PointStruct(
                id=n, vector=ROWS[n % 64].tolist(), payload={"content": "text", "meta": {"n": n}}
            )
            for n in numbers
        ]
        client.upsert("docs", points)
        client.set_payload("docs", {"seen": True}, points=list(numbers[:2]))
        client.delete("docs", list(numbers[2:4]))

    return client, Layout(id_key=None), write


def haystack_writer(location):
    haystack = pytest.importorskip("haystack")
    stores = pytest.importorskip("haystack_integrations.document_stores.qdrant")
    location = {"force_disable_check_same_thread": True, **location}
    store = stores.QdrantDocumentStore(
        **location, index="docs", embedding_dim=DIM, progress_bar=False
    )
    store.count_documents()  # its client is made at first use

    def write(numbers):
        documents = [
            haystack.Document(id=f"d{n}", content="text", embedding=ROWS[n % 64].tolist())
            for n in numbers
        ]
        store.write_documents(
            documents, policy=haystack.document_stores.types.DuplicatePolicy.OVERWRITE
        )
        store.delete_documents([f"d{n}" for n in numbers[2:4]])

    return store._client, Layout(), write


def langchain_writer(location):
    langchain_qdrant = pytest.importorskip("langchain_qdrant")
    embeddings = pytest.importorskip("langchain_core.embeddings")

    class Numbered(embeddings.Embeddings):
        def embed_documents(self, texts):
            return [ROWS[zlib.crc32(text.encode()) % 64].tolist() for text in texts]

        def embed_query(self, text):
            return self.embed_documents([text])[0]

    client = QdrantClient(**location, force_disable_check_same_thread=True)
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("docs", params)
    store = langchain_qdrant.QdrantVectorStore(client, "docs", Numbered())

    def write(numbers):
        store.add_texts([str(n) for n in numbers], ids=list(numbers))
        store.delete(list(numbers[2:4]))

    return client, LANGCHAIN_LAYOUT, write


def read_while_written(make, location, seconds):
    """Errors of 4 readers and of 4 writers on one client, and how many reads there were."""
    client, layout, write = make(location)
    store = QdrantStore(client, "docs", layout=layout)
    write(list(range(8)))
    stop = time.monotonic() + seconds
    numbers = itertools.count(8, 8)
    errors, reads = [], itertools.count()

    def run(call):
        while time.monotonic() < stop:
            try:
                call()
            except Exception as error:
                errors.append(error)

    def read():
        hits = store.search(QUERY, top_k=20)
        assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
        store.get([hits[0].document.id])
        store.count()
        list(store.ids())
        next(reads)

    def write_more():
        start = next(numbers) % 400  # known documents are written again, too
        write(list(range(start, start + 8)))

    threads = [threading.Thread(target=run, args=[call]) for call in [read, write_more] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    return errors, next(reads)


@pytest.mark.parametrize(
    "seconds", [0.3, pytest.param(10, marks=[pytest.mark.slow])], ids=["short", "long"]
)
@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("make", [raw_writer, haystack_writer, langchain_writer])
def test_local_mode_is_safe_beside_other_users_of_the_same_client(make, where, seconds, tmp_path):
    location = {"location": ":memory:"} if where == "memory" else {"path": str(tmp_path / "index")}
    errors, reads = read_while_written(make, location, seconds)
    assert errors == []
    assert reads > 0


def test_a_copy_of_a_guarded_client_is_a_store_of_its_own():
    client = QdrantClient(":memory:")
    store = QdrantStore(client, "docs")
    store.prepare(DIM)
    copied = QdrantStore(copy.deepcopy(client), "docs")
    copied.upsert([Document("a", "text")], QUERY[None])
    assert (copied.count(), store.count()) == (1, 0)
    assert copied._connection._lock is not store._connection._lock


def test_a_local_async_client_beside_a_client_is_refused():
    with pytest.raises(ValueError, match="documents of its own: leave it out"):
        QdrantStore(QdrantClient(":memory:"), "docs", async_client=AsyncQdrantClient(":memory:"))
