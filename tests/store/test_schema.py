"""Collections that others made: named, sparse, several vectors, other distances, other payloads."""

from __future__ import annotations

import asyncio
import uuid

import numpy as np
import pytest
from qdrant_client import models

from e2rank_rag.errors import StoreError
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
from e2rank_rag.types import Document

NAMESPACE = uuid.UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d")

# Against [1, 0, 0]: cosines 1, 0.6 and 0.
DOCUMENTS = [Document("north", "storm"), Document("east", "fair"), Document("west", "strike")]
VECTORS = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], dtype=np.float32)
QUERY = np.array([1, 0, 0], dtype=np.float32)


def ids(hits):
    return [hit.document.id for hit in hits]


def test_unnamed_vectors_beside_sparse_ones_are_read(memory):
    options = {"sparse_vectors_config": {"bm25": models.SparseVectorParams()}}
    store = QdrantStore(memory, "c", collection_options=options)
    store.prepare(3)
    sparse = models.SparseVector(indices=[1], values=[1.0])
    point = models.PointStruct(
        id=str(uuid.uuid5(NAMESPACE, "a")),
        vector={"": [3.0, 4.0, 0.0], "bm25": sparse},
        payload={"id": "a", "content": "", "meta": {}},
    )
    memory.upsert("c", [point])
    (hit,) = store.search(QUERY, top_k=1)
    np.testing.assert_allclose(hit.embedding, [0.6, 0.8, 0.0], atol=1e-6)


def test_named_vectors_are_written_searched_and_read(memory):
    store = QdrantStore(memory, "c", vector_name="dense")
    store.prepare(3)
    store.upsert(DOCUMENTS, VECTORS)
    hits = store.search(QUERY, top_k=2)
    assert ids(hits) == ["north", "east"]
    np.testing.assert_allclose(hits[1].embedding, VECTORS[1], atol=1e-6)
    assert ids(store.rescore(VECTORS[2], ["north", "west"])) == ["west", "north"]


@pytest.mark.parametrize("recorded", ["f1", None])
def test_vectors_carry_the_recorded_fingerprint(memory, recorded):
    store = QdrantStore(memory, "c")
    store.prepare(3, fingerprint=recorded)
    store.upsert(DOCUMENTS, VECTORS)
    stored = store.get(["north"], with_embeddings=True)["north"]
    again = asyncio.run(store.aget(["north"], with_embeddings=True))["north"]
    found = store.search(QUERY, top_k=1) + asyncio.run(store.asearch(QUERY, top_k=1))
    assert {each.fingerprint for each in [stored, again, *found]} == {recorded}
    assert store.get(["north"])["north"].fingerprint is None


@pytest.mark.parametrize(
    ("vector_name", "reason"),
    [(None, "its vectors have names"), ("other", "it has no 'other'")],
)
def test_unknown_vector_name_is_refused_with_the_names_there(memory, vector_name, reason):
    cosine = models.VectorParams(size=3, distance=models.Distance.COSINE)
    memory.create_collection("c", vectors_config={"a": cosine, "b": cosine})
    store = QdrantStore(memory, "c", vector_name=vector_name)
    with pytest.raises(StoreError, match=rf"{reason}; give vector_name= one of \['a', 'b'\]"):
        store.prepare(3)
    with pytest.raises(StoreError, match=reason):
        store.search(QUERY, top_k=1)


def test_vector_name_for_an_unnamed_vector_is_refused(memory):
    QdrantStore(memory, "c").prepare(3)
    with pytest.raises(StoreError, match="leave vector_name out"):
        QdrantStore(memory, "c", vector_name="dense").prepare(3)


def test_sparse_only_collection_is_refused(memory):
    memory.create_collection("c", sparse_vectors_config={"bm25": models.SparseVectorParams()})
    with pytest.raises(StoreError, match=r"no dense vectors \(sparse ones: \['bm25'\]\)"):
        QdrantStore(memory, "c").prepare(3)


def test_multivector_collection_is_refused(memory):
    several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    vectors = models.VectorParams(
        size=3, distance=models.Distance.COSINE, multivector_config=several
    )
    memory.create_collection("c", vectors_config=vectors)
    with pytest.raises(StoreError, match="several vectors per document"):
        QdrantStore(memory, "c").prepare(3)


@pytest.mark.parametrize("distance", [models.Distance.EUCLID, models.Distance.MANHATTAN])
def test_distances_that_are_no_cosine_are_refused(memory, distance):
    memory.create_collection("c", vectors_config=models.VectorParams(size=3, distance=distance))
    with pytest.raises(StoreError, match=f"compares by {distance.value}, and scores .* cosines"):
        QdrantStore(memory, "c").search(QUERY, top_k=1)


def test_dot_collections_hand_out_unit_vectors_too(memory):
    memory.create_collection(
        "c", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT)
    )
    memory.upsert(
        "c",
        [
            models.PointStruct(
                id=str(uuid.uuid5(NAMESPACE, "raw")),
                vector=[3.0, 4.0, 0.0],
                payload={"id": "raw", "content": "", "meta": {}},
            )
        ],
    )
    (hit,) = QdrantStore(memory, "c").search(QUERY, top_k=1)
    np.testing.assert_allclose(hit.embedding, [0.6, 0.8, 0.0], atol=1e-6)


def test_point_without_a_vector_has_no_embedding(memory):
    cosine = models.VectorParams(size=3, distance=models.Distance.COSINE)
    memory.create_collection("c", vectors_config={"dense": cosine})
    point = str(uuid.uuid5(NAMESPACE, "a"))
    payload = {"id": "a", "content": "x", "meta": {}}
    memory.upsert("c", [models.PointStruct(id=point, vector={}, payload=payload)])
    store = QdrantStore(memory, "c", vector_name="dense")
    assert store.get(["a"], with_embeddings=True)["a"].embedding is None


def test_content_under_another_key_is_an_error_that_names_the_keys(memory):
    QdrantStore(memory, "c").prepare(3)
    memory.upsert("c", [models.PointStruct(id=1, vector=[1, 0, 0], payload={"text": "x"})])
    with pytest.raises(StoreError, match=r"no 'content', its payload holds \['text'\]"):
        QdrantStore(memory, "c").search(QUERY, top_k=1)


def test_missing_document_id_is_an_error_that_names_the_way_out(memory):
    QdrantStore(memory, "c").prepare(3)
    memory.upsert("c", [models.PointStruct(id=1, vector=[1, 0, 0], payload={"content": "x"})])
    with pytest.raises(StoreError, match=r"no document id at 'id'.*None to use the point ids"):
        list(QdrantStore(memory, "c").ids())
    (hit,) = QdrantStore(memory, "c", layout=Layout(id_key=None)).search(QUERY, top_k=1)
    assert hit.document == Document("1", "x", {})


def test_layout_without_id_key_uses_point_ids(memory):
    store = QdrantStore(memory, "c", layout=LANGCHAIN_LAYOUT)
    store.prepare(3)
    names = ["7", "3896d314-1e95-4a3a-b45a-945f9f0b541d", "3896d3141e954a3ab45a945f9f0b5410"]
    store.upsert([Document(name, f"text {name}") for name in names], VECTORS)
    assert store.get([names[0]])["7"].document == Document("7", "text 7")
    assert store.get([names[2]])[names[2]].document.text == f"text {names[2]}"
    assert set(store.ids()) == {*names[:2], "3896d314-1e95-4a3a-b45a-945f9f0b5410"}
    (point,) = memory.retrieve("c", [7])
    assert set(point.payload) == {"page_content", "metadata"}


@pytest.mark.parametrize("id", ["north", "007", str(2**64), "-1"])
def test_layout_without_id_key_refuses_ids_that_are_no_point_ids(memory, id):
    store = QdrantStore(memory, "c", layout=LANGCHAIN_LAYOUT)
    with pytest.raises(ValueError, match=f"'{id}' cannot be a point id"):
        store.get([id])


def test_null_content_and_meta_are_empty(memory):
    QdrantStore(memory, "c").prepare(3)
    payload = {"id": "a", "content": None, "meta": None}
    memory.upsert("c", [models.PointStruct(id=1, vector=[1, 0, 0], payload=payload)])
    (hit,) = QdrantStore(memory, "c").search(QUERY, top_k=1)
    assert hit.document == Document("a", "", {})
