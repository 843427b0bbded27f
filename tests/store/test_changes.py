"""Collections that change while a store is open on them, and points that others keep things on."""

from __future__ import annotations

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from e2rank_rag.errors import CollectionMissing, StoredVectorMismatch, StoreError
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore, answers, schema
from e2rank_rag.types import Document

DOCUMENTS = [Document("a", "first", {"n": 1}), Document("b", "second", {"n": 2})]
VECTORS = np.eye(3, dtype=np.float32)[:2]


@pytest.fixture
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


def prepared(client, fingerprint="f1", dim=3):
    store = QdrantStore(client, "c")
    store.prepare(dim, fingerprint=fingerprint)
    return store


def recreated(client, fingerprint, dim=3):
    client.delete_collection("c")
    prepared(client, fingerprint, dim)


async def write(store, asynchronous):
    if asynchronous:
        await store.aupsert(DOCUMENTS, VECTORS)
    else:
        store.upsert(DOCUMENTS, VECTORS)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("fingerprint", ["f2", None])
async def test_nothing_is_written_into_the_collection_of_another_model(
    client, fingerprint, asynchronous
):
    store = prepared(client)
    store.upsert(DOCUMENTS, VECTORS)
    recreated(client, fingerprint)
    with pytest.raises(StoredVectorMismatch, match=r"said f1.*Nothing was written"):
        await write(store, asynchronous)
    assert store.count() == 0
    assert store.fingerprint == fingerprint


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_nothing_is_written_into_a_collection_of_another_dimension(client, asynchronous):
    store = prepared(client)
    recreated(client, "f1", dim=2)
    with pytest.raises(StoreError, match="holds vectors of 2 dimensions, these have 3"):
        await write(store, asynchronous)


@pytest.mark.parametrize("first", ["f1", None])
def test_a_collection_that_is_made_anew_for_the_same_model_is_written(client, first):
    store = QdrantStore(client, "c")
    prepared(client, first).upsert(DOCUMENTS, VECTORS)
    store.prepare(3, fingerprint="f1")
    recreated(client, "f1")
    store.upsert(DOCUMENTS, VECTORS)
    assert store.count() == 2


def test_dim_fingerprint_and_model_are_those_of_now(client):
    store = prepared(client)
    assert (store.dim, store.fingerprint) == (3, "f1")
    recreated(client, "f2", dim=2)
    assert (store.dim, store.fingerprint) == (2, "f2")
    client.delete_collection("c")
    assert (store.fingerprint, store.model, store.exists) == (None, None, False)
    with pytest.raises(CollectionMissing, match="'c' is not there"):
        store.dim  # noqa: B018
    with pytest.raises(CollectionMissing):
        store.search(VECTORS[0], top_k=1)


async def test_a_server_is_asked_at_most_every_few_seconds(client, monkeypatch):
    store = prepared(client)
    asked = []
    call = store._connection._call
    monkeypatch.setattr(store._connection, "local", False)
    monkeypatch.setattr(
        store._connection, "_call", lambda r, *t: (asked.append(r.method), call(r, *t))[1]
    )
    now = [schema.monotonic()]
    monkeypatch.setattr(schema, "monotonic", lambda: now[0])
    for _ in range(3):
        store.search(VECTORS[0], top_k=1)
        await store.asearch(VECTORS[0], top_k=1)
        assert store.fingerprint == "f1"
    assert asked.count("get_collection") == 0
    recreated(client, "f2")
    assert store.fingerprint == "f1"
    now[0] += 2.1
    assert store.fingerprint == "f2"
    assert asked.count("get_collection") == 1


# What others keep


def hybrid(client, layout, vector_name):
    """A collection with a sparse vector, where vectors have names also a dense one, and payload
    under keys of its own."""
    dense = models.VectorParams(size=3, distance=models.Distance.COSINE)
    vectors = {vector_name: dense, "image": dense} if vector_name else dense
    client.create_collection(
        "c", vectors, sparse_vectors_config={"words": models.SparseVectorParams()}
    )
    store = QdrantStore(client, "c", layout=layout, vector_name=vector_name)
    store.upsert(DOCUMENTS_OF[layout.id_key], VECTORS)
    point = layout.point_id(DOCUMENTS_OF[layout.id_key][0].id)
    others = {"words": models.SparseVector(indices=[3, 5], values=[1.0, 2.0])}
    if vector_name:
        others["image"] = [0, 0, 1]
    client.update_vectors("c", [models.PointVectors(id=point, vector=others)])
    client.set_payload("c", {"tenant": "x", "blob": {"mime": "image/png"}}, points=[point])
    return store, point


UUIDS = ["3896d314-1e95-4a3a-b45a-945f9f0b541d", "3896d314-1e95-4a3a-b45a-945f9f0b541e"]
DOCUMENTS_OF = {
    "id": DOCUMENTS,
    "key of mine": DOCUMENTS,
    None: [Document(id, d.text, d.meta) for id, d in zip(UUIDS, DOCUMENTS, strict=True)],
}
LAYOUTS = [Layout(), LANGCHAIN_LAYOUT, Layout("key of mine", "body text", "info")]


@pytest.mark.parametrize("how", ["upsert", "aupsert", "update_meta"])
@pytest.mark.parametrize("vector_name", ["text", None])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["haystack", "langchain", "own"])
async def test_an_update_keeps_the_points_other_vectors_and_payload(
    client, layout, vector_name, how, caplog
):
    store, point = hybrid(client, layout, vector_name)
    first = DOCUMENTS_OF[layout.id_key][0]
    if how == "update_meta":
        store.update_meta([Document(first.id, first.text, {"n": 7})])
    else:
        changed = [Document(d.id, "changed", {"n": 7}) for d in DOCUMENTS_OF[layout.id_key]]
        turned = VECTORS[::-1].copy()
        written = store.upsert(changed, turned) if how == "upsert" else None
        assert written is None
        if how == "aupsert":
            await store.aupsert(changed, turned)
        assert "documents that are written again keep their other vectors" in caplog.text
    (stored,) = client.retrieve("c", [point], with_vectors=True)
    assert stored.vector["words"] == models.SparseVector(indices=[3, 5], values=[1.0, 2.0])
    assert not vector_name or stored.vector["image"] == [0, 0, 1]
    assert stored.vector[vector_name or ""] == ([1, 0, 0] if how == "update_meta" else [0, 1, 0])
    assert stored.payload["tenant"] == "x"
    assert stored.payload["blob"] == {"mime": "image/png"}
    assert stored.payload[layout.metadata_key] == {"n": 7}
    assert len(stored.payload) == (4 if layout.id_key is None else 5)
    (beside,) = (store.get([DOCUMENTS_OF[layout.id_key][1].id])).values()
    assert beside.document.text == ("second" if how == "update_meta" else "changed")
    assert store.count() == 2


# Batches


class Recorder:
    """A client that keeps every request, and gives the answers of another."""

    def __init__(self, store):
        self.sizes = []
        call = store._connection._call

        def recorded(request, *tries):
            self.sizes.append((request.method, len(str(request.arguments))))
            return call(request, *tries)

        store._connection._call = recorded

    def largest(self):
        return max(size for _, size in self.sizes)


def test_every_request_is_in_batches_by_bytes(client, monkeypatch):
    """Servers take 32 MB; a request of ours is at most some 4 MB (here 0.05) and one document."""
    monkeypatch.setattr(answers, "BYTES_PER_REQUEST", 50_000)
    store = prepared(client)
    recorder = Recorder(store)
    large = [Document(f"d{n}", "x" * 2500, {"m": "y" * 2500}) for n in range(64)]
    vectors = np.ones((64, 3), np.float32)
    store.upsert(large, vectors)
    store.update_meta([Document(d.id, d.text, {"m": "z" * 2500}) for d in large])
    many = [Document(f"e{n}", "x") for n in range(1500)]
    store.upsert(many, np.ones((1500, 3), np.float32))
    ids = [d.id for d in many]
    assert len(store.get(ids)) == len(store.rescore(vectors[0], ids)) == 1500
    filter = {"m": [f"{n:0>125}" for n in range(20)]}
    assert store.search_batch(np.ones((40, 3), np.float32), top_k=1, filter=filter) == [[]] * 40
    store.delete(ids)
    assert store.count() == 64
    assert recorder.largest() < 75_000


def test_rescore_of_many_ids_is_one_ranking(client):
    store = prepared(client)
    angles = np.random.default_rng(0).uniform(0, 3, size=2500)
    vectors = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    store.upsert([Document(f"d{n}", "x") for n in range(2500)], vectors)
    hits = store.rescore(np.array([1.0, 0, 0]), [f"d{n}" for n in range(2500)])
    assert [hit.document.id for hit in hits] == [f"d{n}" for n in np.argsort(angles)]


# Values that others wrote


@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"a": 1}])
def test_a_content_that_is_no_text_is_an_error_that_names_the_document(client, value):
    store = prepared(client)
    store.upsert(DOCUMENTS, VECTORS)
    client.set_payload("c", {"content": value}, points=[store.layout.point_id("b")])
    for read in (lambda: store.search(VECTORS[0], top_k=2), lambda: store.get(["b"])):
        with pytest.raises(StoreError, match=r"document 'b' .* at 'content'.*not str"):
            read()


@pytest.mark.parametrize("value", [5, "text", ["a"]])
def test_a_meta_that_is_no_mapping_is_an_error_that_names_the_document(client, value):
    store = prepared(client)
    store.upsert(DOCUMENTS, VECTORS)
    client.set_payload("c", {"meta": value}, points=[store.layout.point_id("b")])
    with pytest.raises(StoreError, match=r"document 'b' .* at 'meta'.*not dict"):
        store.get(["b"])


def test_lengths_of_a_dot_collection_are_in_no_score(client, caplog):
    client.create_collection("c", models.VectorParams(size=3, distance=models.Distance.DOT))
    layout = Layout(id_key=None)
    rows = {1: [100, 0, 0], 2: [0.6, 0.8, 0], 3: [99, 99, 0], 4: [0, 0, 0], 5: [np.inf, 0, 0]}
    client.upsert(
        "c",
        [
            models.PointStruct(id=id, vector=row, payload={"content": str(id)})
            for id, row in rows.items()
        ],
    )
    store = QdrantStore(client, "c", layout=layout)
    query = np.array([0.6, 0.8, 0], np.float32)
    expected = {"2": 1.0, "3": 1.4 / np.sqrt(2), "1": 0.6, "4": 0.0, "5": 0.0}
    for hits in (store.search(query, top_k=5), store.rescore(query, list(expected))):
        found = {hit.document.id: hit.score for hit in hits}
        assert list(found)[:3] == ["2", "3", "1"]
        assert found == pytest.approx(expected, abs=1e-6)
    assert "document '5'" in caplog.text
