"""The contract of QdrantStore in memory, in a folder, and on a server where there is one."""

from __future__ import annotations

import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from qdrant_client import models

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.store import QdrantStore, answers, requests, searches
from e2rank_rag.types import Document

NAMESPACE = uuid.UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d")

# Against [1, 0, 0]: cosines 1, 0.6 and 0.
DOCUMENTS = [
    Document("north", "a storm in the north", {"year": 2024, "tags": ["weather"]}),
    Document("east", "a fair in the east", {"year": 2005, "tags": ["trade", "people"]}),
    Document("west", "a strike in the west", {"year": 1999, "tags": ["people"]}),
]
VECTORS = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], dtype=np.float32)
QUERY = np.array([1, 0, 0], dtype=np.float32)


@pytest.fixture
def empty(opened):
    """A store without its collection."""
    return opened()


@pytest.fixture
def store(empty):
    empty.prepare(3, fingerprint="f1", model="model-1")
    empty.upsert(DOCUMENTS, VECTORS)
    return empty


def ids(hits):
    return [hit.document.id for hit in hits]


def raw_points(store):
    points, _ = store.client.scroll(store.collection, with_vectors=True, limit=100)
    return {str(point.id): point for point in points}


# Search and rescore


def test_search_ranks_by_cosine(store):
    hits = store.search(QUERY, top_k=3)
    assert ids(hits) == ["north", "east", "west"]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.6, 0.0], abs=1e-6)
    assert all(type(hit.score) is float for hit in hits)


def test_search_returns_documents_as_they_were_written(store):
    assert [hit.document for hit in store.search(QUERY, top_k=3)] == DOCUMENTS


def test_hits_carry_unit_float32_embeddings(store):
    hits = store.search(QUERY, top_k=3)
    np.testing.assert_allclose([hit.embedding for hit in hits], VECTORS, atol=1e-6)
    assert all(hit.embedding.dtype == np.float32 for hit in hits)


def test_top_k_limits_the_ranking(store):
    assert ids(store.search(QUERY, top_k=2)) == ["north", "east"]


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_must_be_positive(store, top_k):
    with pytest.raises(ValueError, match=f"top_k must be > 0, got {top_k}"):
        store.search(QUERY, top_k=top_k)


def test_filter_limits_the_candidates(store):
    assert ids(store.search(QUERY, top_k=3, filter={"year": {"lt": 2010}})) == ["east", "west"]
    native = models.Filter(
        must=[models.FieldCondition(key="meta.year", match=models.MatchValue(value=1999))]
    )
    assert ids(store.search(QUERY, top_k=3, filter=native)) == ["west"]


def test_search_batch_is_search_per_row(store):
    rankings = store.search_batch(VECTORS, top_k=2)
    assert rankings == [store.search(vector, top_k=2) for vector in VECTORS]


def test_search_batch_is_the_same_in_several_requests(store, monkeypatch):
    whole = store.search_batch(VECTORS, top_k=2)
    monkeypatch.setattr(searches, "NUMBERS_PER_ANSWER", 1)
    assert store.search_batch(VECTORS, top_k=2) == whole


def test_search_batch_of_nothing_is_empty(store):
    assert store.search_batch(np.zeros((0, 3), dtype=np.float32), top_k=2) == []


def test_query_of_another_dimension_is_refused(store):
    with pytest.raises(ValueError, match=r"\[n, 3\], got \[1, 2\]"):
        store.search(np.ones(2, dtype=np.float32), top_k=1)


def test_rescore_scores_all_the_ids_it_knows(store):
    hits = store.rescore(VECTORS[2], ["east", "west", "unknown", "east"])
    assert ids(hits) == ["west", "east"]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert hits[1].document == DOCUMENTS[1]


def test_rescore_returns_every_one_of_many_ids(store):
    many = [Document(f"d{i}", "text") for i in range(300)]
    store.upsert(many, np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    assert sorted(ids(store.rescore(QUERY, [d.id for d in many]))) == sorted(d.id for d in many)


def test_rescore_of_no_ids_is_empty(store):
    assert store.rescore(QUERY, []) == []


# Reading, counting, deleting


def test_get_keeps_the_order_asked_for_and_leaves_out_the_unknown(store):
    stored = store.get(["west", "unknown", "north"])
    assert list(stored) == ["west", "north"]
    assert stored["north"].document == DOCUMENTS[0]
    assert stored["north"].embedding is None


def test_get_with_embeddings(store):
    stored = store.get(["east"], with_embeddings=True)
    np.testing.assert_allclose(stored["east"].embedding, VECTORS[1], atol=1e-6)


def test_get_of_nothing_is_empty(store):
    assert store.get([]) == {}


def test_ids_yields_every_id_over_several_pages(store, monkeypatch):
    monkeypatch.setattr(requests, "IDS_PER_REQUEST", 2)
    assert sorted(store.ids()) == ["east", "north", "west"]


def test_count_with_and_without_filter(store):
    assert store.count() == 3
    assert store.count({"tags": "people"}) == 2


def test_delete_removes_known_ids_and_ignores_others(store):
    store.delete(["north", "unknown"])
    assert sorted(store.ids()) == ["east", "west"]
    store.delete([])
    assert store.count() == 2


# Writing


def test_upsert_twice_changes_nothing(store):
    before = raw_points(store)
    store.upsert(DOCUMENTS, VECTORS)
    assert raw_points(store) == before


def test_upsert_replaces_a_document_of_the_same_id(store):
    store.upsert([Document("north", "calm", {"year": 2025})], VECTORS[2:])
    assert store.count() == 3
    stored = store.get(["north"], with_embeddings=True)["north"]
    assert stored.document == Document("north", "calm", {"year": 2025})
    np.testing.assert_allclose(stored.embedding, VECTORS[2], atol=1e-6)


def test_points_have_haystacks_ids_and_exactly_its_keys(store):
    points = raw_points(store)
    assert set(points) == {str(uuid.uuid5(NAMESPACE, d.id)) for d in DOCUMENTS}
    point = points[str(uuid.uuid5(NAMESPACE, "east"))]
    assert point.payload == {
        "id": "east",
        "content": "a fair in the east",
        "meta": {"year": 2005, "tags": ["trade", "people"]},
    }


@pytest.mark.parametrize(
    ("module", "limit"), [(requests, "POINTS_PER_REQUEST"), (answers, "BYTES_PER_REQUEST")]
)
def test_upsert_in_several_requests_writes_all(empty, monkeypatch, module, limit):
    monkeypatch.setattr(module, limit, 2)
    empty.prepare(3)
    empty.upsert(DOCUMENTS, VECTORS)
    assert empty.count() == 3


def test_batches_respect_both_limits(monkeypatch):
    monkeypatch.setattr(answers, "BYTES_PER_REQUEST", 10)
    batches = answers.batches("abcdefg", 3, [4, 4, 4, 11, 1, 1, 1])
    assert ["".join(batch) for batch in batches] == ["ab", "c", "d", "efg"]


def test_upsert_of_nothing_writes_nothing(store):
    store.upsert([], np.zeros((0, 3), dtype=np.float32))
    assert store.count() == 3


def test_vectors_are_scaled_to_unit_length(store):
    store.upsert([Document("long", "")], np.array([[3, 4, 0]], dtype=np.float32))
    stored = store.get(["long"], with_embeddings=True)["long"]
    np.testing.assert_allclose(stored.embedding, [0.6, 0.8, 0.0], atol=1e-6)


def test_update_meta_replaces_all_of_it_and_keeps_text_and_vector(store):
    store.update_meta([Document("east", "ignored", {"place": {"town": "A"}})])
    stored = store.get(["east"], with_embeddings=True)["east"]
    assert stored.document == Document("east", "a fair in the east", {"place": {"town": "A"}})
    np.testing.assert_allclose(stored.embedding, VECTORS[1], atol=1e-6)


def test_update_meta_can_empty_it(store):
    store.update_meta([Document("east", "", {})])
    assert store.get(["east"])["east"].document.meta == {}


def test_update_meta_names_absent_documents_and_changes_none(store):
    with pytest.raises(StoreError, match=r"1 of 2 documents are not in .*'unknown'"):
        store.update_meta([Document("east", "", {"new": 1}), Document("unknown", "")])
    assert store.get(["east"])["east"].document == DOCUMENTS[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_dtype_is_taken(store, dtype):
    store.upsert([Document("a", "")], np.array([[0, 2, 0]], dtype=dtype))
    assert ids(store.search(np.array([0, 1, 0], dtype=dtype), top_k=1)) == ["a"]


def test_json_meta_comes_back_equal(store):
    meta = {"a": None, "b": True, "c": -(2**63), "d": 0.1, "e": ["x", {"y": []}], "f": "ü\n"}
    store.upsert([Document("a", "", meta)], VECTORS[:1])
    assert store.get(["a"])["a"].document.meta == meta


def test_nul_characters_survive(store):
    document = Document("nul\0id", "text\0more", {"key\0": "value\0"})
    store.upsert([document], VECTORS[:1])
    assert store.get(["nul\0id"])["nul\0id"].document == document


# Preparing


def test_prepare_creates_a_cosine_collection_of_unnamed_vectors(empty):
    assert not empty.exists
    empty.prepare(3)
    vectors = empty.client.get_collection(empty.collection).config.params.vectors
    assert (vectors.size, vectors.distance) == (3, models.Distance.COSINE)
    assert empty.exists
    assert empty.dim == 3


def test_prepare_records_fingerprint_model_and_dimension(empty):
    empty.prepare(3, fingerprint="f1", model="model-1")
    metadata = empty.client.get_collection(empty.collection).config.metadata
    assert metadata == {"e2rank": {"fingerprint": "f1", "model": "model-1", "dim": 3}}
    assert empty.fingerprint == "f1"


def test_prepare_again_keeps_the_documents(store):
    store.prepare(3, fingerprint="f1", model="model-1")
    store.prepare(3)
    assert store.count() == 3


def test_prepare_refuses_another_dimension(store):
    with pytest.raises(StoreError, match=r"holds vectors of 3 dimensions, these have 4.*another"):
        store.prepare(4, fingerprint="f1")


def test_prepare_refuses_another_fingerprint_and_names_both_models(store):
    with pytest.raises(StoredVectorMismatch, match=r"'model-1'.*'model-2'.*another collection"):
        store.prepare(3, fingerprint="f2", model="model-2")


def test_prepare_records_in_an_empty_collection_and_keeps_its_other_metadata(empty):
    empty.client.create_collection(
        empty.collection,
        vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE),
        metadata={"owner": "someone"},
    )
    assert empty.fingerprint is None
    empty.prepare(3, fingerprint="f1", model="model-1")
    assert empty.fingerprint == "f1"
    metadata = empty.client.get_collection(empty.collection).config.metadata
    assert metadata["owner"] == "someone"


def test_prepare_leaves_the_metadata_of_a_foreign_collection_alone(empty):
    empty.prepare(3)
    empty.upsert(DOCUMENTS, VECTORS)
    empty.prepare(3, fingerprint="f1")
    assert empty.fingerprint is None
    assert not empty.client.get_collection(empty.collection).config.metadata


def test_fingerprint_of_a_missing_collection_is_none(empty):
    assert empty.fingerprint is None


def test_prepare_refuses_a_dimension_below_one(empty):
    with pytest.raises(ValueError, match="dim must be > 0, got 0"):
        empty.prepare(0)


def test_collection_options_reach_the_new_collection(memory):
    options = {"sparse_vectors_config": {"bm25": models.SparseVectorParams()}}
    store = QdrantStore(memory, "c", collection_options=options)
    store.prepare(3)
    assert list(memory.get_collection("c").config.params.sparse_vectors) == ["bm25"]


def test_collection_options_may_not_hold_what_prepare_sets(memory):
    with pytest.raises(ValueError, match=r"may not hold \['metadata'\]"):
        QdrantStore(memory, "c", collection_options={"metadata": {}})


def test_prepare_survives_a_collection_created_meanwhile(memory, monkeypatch):
    store = QdrantStore(memory, "c")
    QdrantStore(memory, "c").prepare(3, fingerprint="f1")
    answers = iter([False])  # what this store saw before the other one created it
    monkeypatch.setattr(QdrantStore, "exists", property(lambda self: next(answers, True)))
    store.prepare(3, fingerprint="f1")
    assert store.fingerprint == "f1"


# Missing collection, names, closing


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.search(QUERY, top_k=1),
        lambda store: store.rescore(QUERY, ["a"]),
        lambda store: store.upsert(DOCUMENTS, VECTORS),
        lambda store: store.update_meta(DOCUMENTS),
        lambda store: store.get(["a"]),
        lambda store: list(store.ids()),
        lambda store: store.delete(["a"]),
        lambda store: store.count(),
        lambda store: store.dim,
    ],
)
def test_missing_collection_says_to_index_first_and_names_those_there(empty, use):
    other = QdrantStore(empty.client, f"{empty.collection}-other")
    other.prepare(3)
    with pytest.raises(StoreError, match=r"not there .*index documents first") as error:
        use(empty)
    assert repr(other.collection) in str(error.value)
    empty.client.delete_collection(other.collection)


def test_names_say_collection_and_place(tmp_path):
    with pytest.raises(ValueError, match="must have a name"):
        QdrantStore.open(":memory:", "")
    first, second = QdrantStore.open(":memory:", "c"), QdrantStore.open(":memory:", "c")
    assert first.name.startswith("collection 'c' in memory #")
    assert first.name != second.name
    assert QdrantStore(first.client, "c").name == first.name
    folder = QdrantStore.open(tmp_path / "f", "c")
    assert folder.name == f"collection 'c' in folder {tmp_path / 'f'}"
    server = QdrantStore.open("http://user:secret@127.0.0.1:9", "c")
    assert server.name == "collection 'c' at http://127.0.0.1:9"
    for store in (first, second, folder, server):
        store.close()


def test_closed_store_says_so(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed: open it again"):
        store.count()


def test_close_leaves_a_client_that_was_given_open(memory):
    store = QdrantStore(memory, "c")
    store.prepare(3)
    store.close()
    assert memory.collection_exists("c")


def test_documents_survive_closing_and_opening_a_folder(tmp_path):
    with_documents = QdrantStore.open(tmp_path, "c")
    with_documents.prepare(3, fingerprint="f1", model="model-1")
    with_documents.upsert(DOCUMENTS, VECTORS)
    with_documents.close()

    opened = QdrantStore.open(tmp_path, "c")
    assert opened.fingerprint == "f1"
    assert [hit.document for hit in opened.search(QUERY, top_k=3)] == DOCUMENTS
    with pytest.raises(StoredVectorMismatch, match="'model-1'"):
        opened.prepare(3, fingerprint="f2")
    opened.close()


# Async and threads


async def test_async_methods_give_what_the_others_give(empty):
    await empty.aprepare(3, fingerprint="f1")
    await empty.aupsert(DOCUMENTS, VECTORS)
    assert await empty.acount({"year": 2005}) == empty.count({"year": 2005}) == 1
    assert await empty.asearch(QUERY, top_k=2) == empty.search(QUERY, top_k=2)
    assert await empty.asearch_batch(VECTORS, top_k=2) == empty.search_batch(VECTORS, top_k=2)
    assert await empty.arescore(QUERY, ["west", "east"]) == empty.rescore(QUERY, ["west", "east"])
    assert await empty.arescore(QUERY, []) == []
    assert await empty.aget(["east"]) == empty.get(["east"])
    await empty.aupdate_meta([Document("east", "", {"new": 1})])
    assert empty.get(["east"])["east"].document.meta == {"new": 1}
    await empty.adelete(["east"])
    assert sorted(empty.ids()) == ["north", "west"]


async def test_async_search_on_a_missing_collection_says_to_index_first(empty):
    with pytest.raises(StoreError, match="index documents first"):
        await empty.asearch(QUERY, top_k=1)


async def test_async_search_reads_what_a_sync_call_wrote(store):
    assert ids(await store.asearch(QUERY, top_k=3)) == ["north", "east", "west"]


def test_eight_threads_search_and_write(store):
    def work(thread):
        for i in range(10):
            document = Document(f"{thread}-{i}", f"text {i}", {"thread": thread})
            store.upsert([document], np.array([[0.0, 1.0, i]], dtype=np.float32))
            assert ids(store.search(QUERY, top_k=1)) == ["north"]
            assert store.get([document.id])[document.id].document == document
            if i % 2:
                store.delete([document.id])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert store.count() == 3 + 8 * 5
    assert store.count({"thread": 3}) == 5


def test_size_warning_of_local_mode_is_silenced_and_no_other(memory, monkeypatch):
    from qdrant_client.common import client_warnings
    from qdrant_client.local.local_collection import LocalCollection

    monkeypatch.setattr(LocalCollection, "LARGE_DATA_THRESHOLD", 2)
    monkeypatch.setattr(client_warnings, "SEEN_MESSAGES", set())
    store = QdrantStore(memory, "c")
    store.prepare(3)
    store.upsert(DOCUMENTS, VECTORS)  # would raise: warnings are errors here
    with pytest.warns(UserWarning, match="other"):
        warnings.warn("other", stacklevel=1)
