"""Searches by words, alone and together with vectors: the sparse vector, its record, the fusion."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import pickle

import numpy as np
import pytest
from qdrant_client import models

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore, answers, searches
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25
from tests.kit import ids

BM25 = Bm25()
IDF = {"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)}

# Cosines to QUERY: 1, 0.8, 0.6, 0. Only "1" and "2" hold "cat", only "2" holds "dog".
DOCUMENTS = [
    Document("1", "Cats purr loudly.", {"year": 1999}),
    Document("2", "Dogs bark at cats.", {"year": 2024}),
    Document("3", "the and of", {"year": 2024}),
    Document("4", "A storm in the north.", {"year": 1999}),
]
VECTORS = np.float32([[1, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]])
QUERY = np.float32([1, 0])
LAYOUTS = {
    "ours": Layout(),
    "langchain": LANGCHAIN_LAYOUT,
    "own": Layout(id_key="doc_id", content_key="body", metadata_key="fields"),
}


@pytest.fixture
def empty(opened):
    """A store without its collection."""
    return opened(bm25=BM25)


@pytest.fixture
def store(empty):
    empty.prepare(2, fingerprint="f1", model="model-1")
    empty.upsert(DOCUMENTS, VECTORS)
    return empty


def idf(documents, holding):
    return math.log((documents - holding + 0.5) / (holding + 0.5) + 1)


def weight(words, count=1):
    return count * 2.2 / (count + 1.2 * (0.25 + 0.75 * words / 256))


def scaled(scores):
    """Scores of one ranking as DBSF adds them: 0 to 1 from mean - 3 to mean + 3 deviations."""
    mean, deviation = np.mean(scores), np.std(scores, ddof=1)
    return [(score - mean) / (6 * deviation) + 0.5 for score in scores]


def sparse_of(store, id):
    (point,) = store.client.retrieve(
        store.collection, [store.layout.point_id(id)], with_vectors=True
    )
    return point.vector.get("bm25") if isinstance(point.vector, dict) else None


def hybrid(store, query, *, top_k=4, **options):
    return store.search_batch(QUERY[None], top_k=top_k, queries=[query], **options)[0]


def both_ways(store, call, acall):
    """The answer of a method, which its async twin gives too."""
    answer = call()
    assert asyncio.run(acall()) == answer
    return answer


# Search


def test_words_alone_rank_by_bm25(store):
    options = {"top_k": 3}
    queries = ["barking cats", "of the", "nothing here", "storms"]
    first, stopped, unknown, last = both_ways(
        store,
        lambda: store.search_words_batch(queries, **options),
        lambda: store.asearch_words_batch(queries, **options),
    )
    # Three documents have words: Qdrant's idf counts the points that have the sparse vector.
    cat, bark = idf(3, 2), idf(3, 1)
    assert ids(first) == ["2", "1"]
    expected = [(cat + bark) * weight(3), cat * weight(3)]
    assert [hit.score for hit in first] == pytest.approx(expected, rel=1e-5)
    assert (stopped, unknown, ids(last)) == ([], [], ["4"])


@pytest.mark.parametrize("fusion", ["rrf", "dbsf"])
def test_a_hybrid_search_fuses_both_rankings(store, fusion):
    rows, options = np.stack([QUERY, QUERY]), {"top_k": 3, "fusion": fusion}
    found, by_vector = both_ways(
        store,
        lambda: store.search_batch(rows, queries=["barking cats", "of the"], **options),
        lambda: store.asearch_batch(rows, queries=["barking cats", "of the"], **options),
    )
    assert [ids(found), ids(by_vector)] == [["1", "2", "4"], ["1", "4", "3"]]
    # Without words the vector decides alone, and scores are cosines.
    assert [hit.score for hit in by_vector] == pytest.approx([1, 0.8, 0.6], abs=1e-6)
    expected = [1 / 2 + 1 / 3, 1 / 2, 1 / 3]  # 1 / (2 + rank) of each ranking, from rank 0
    if fusion == "dbsf":
        cat, bark = idf(3, 2) * weight(3), idf(3, 1) * weight(3)
        (one, four, _), (two, also_one) = scaled([1, 0.8, 0.6]), scaled([cat + bark, cat])
        expected = [one + also_one, two, four]
    assert [hit.score for hit in found] == pytest.approx(expected, rel=1e-4)


def test_hybrid_hits_have_their_vectors_and_fingerprint(store):
    for hits in (hybrid(store, "barking cats"), store.search_words_batch(["cats"], top_k=4)[0]):
        for hit in hits:
            np.testing.assert_allclose(hit.embedding, VECTORS[int(hit.document.id) - 1], atol=1e-6)
            assert (hit.fingerprint, hit.source) == ("f1", store.name)


def test_each_ranking_of_a_hybrid_search_is_top_k_long(empty):
    """Qdrant's own limit is 10."""
    count = 60
    documents = [Document(str(i), f"cat number{i}") for i in range(count)]
    angles = np.linspace(0, 1, count)
    empty.prepare(2)
    empty.upsert(documents, np.float32(np.stack([np.cos(angles), np.sin(angles)], axis=1)))
    assert len(hybrid(empty, "nothing here", top_k=50)) == 50
    assert len(hybrid(empty, "cats", top_k=50)) == 50


def test_filters_apply_to_both_rankings(store):
    assert set(ids(hybrid(store, "barking cats", filter={"year": 2024}))) == {"2", "3"}
    (found,) = store.search_words_batch(["cats"], top_k=4, filter={"year": 1999})
    assert ids(found) == ["1"]


def test_a_hybrid_search_is_the_same_in_several_requests(store, monkeypatch):
    rows, queries = np.stack([QUERY] * 3), ["cats", "of", "storm"]
    whole = store.search_batch(rows, top_k=2, queries=queries)
    words = store.search_words_batch(queries, top_k=2)
    monkeypatch.setattr(searches, "NUMBERS_PER_ANSWER", 1)
    assert store.search_batch(rows, top_k=2, queries=queries) == whole
    assert store.search_words_batch(queries, top_k=2) == words


def test_rescore_get_and_dense_search_are_as_without_words(store):
    dense = QdrantStore.open(":memory:", "dense")
    dense.prepare(2, fingerprint="f1")
    dense.upsert(DOCUMENTS, VECTORS)
    assert store.rescore(QUERY, ["1", "2"]) == dense.rescore(QUERY, ["1", "2"])
    assert store.search(QUERY, top_k=4) == dense.search(QUERY, top_k=4)
    ours, theirs = (each.get(["2", "3"], with_embeddings=True) for each in (store, dense))
    for id in ("2", "3"):
        assert ours[id].document == theirs[id].document
        np.testing.assert_array_equal(ours[id].embedding, theirs[id].embedding)
    dense.close()


def test_queries_and_embeddings_are_as_many(store):
    with pytest.raises(ValueError, match="2 queries came with 1 embeddings"):
        store.search_batch(QUERY[None], top_k=3, queries=["a", "b"])
    with pytest.raises(ValueError, match="one text"):
        store.search_batch(QUERY[None], top_k=3, queries="a")
    with pytest.raises(ValueError, match=r"fusion must be one of .* got 'sum'"):
        store.search_batch(QUERY[None], top_k=3, queries=["a"], fusion="sum")
    with pytest.raises(ValueError, match="top_k must be > 0"):
        store.search_words_batch(["a"], top_k=0)


def test_no_queries_have_no_rankings(store):
    assert store.search_batch(np.zeros((0, 2), np.float32), top_k=3, queries=[]) == []
    assert store.search_words_batch([], top_k=3) == []


# Writing


def test_upsert_writes_the_words_of_the_new_text(store, caplog):
    with caplog.at_level(logging.WARNING):
        store.upsert([Document("1", "Storms rage.")], VECTORS[:1])
    (expected,) = BM25.documents(["Storms rage."])
    sparse = sparse_of(store, "1")
    assert dict(zip(sparse.indices, sparse.values, strict=True)) == dict(
        zip(*expected, strict=True)
    )
    assert ids(store.search_words_batch(["cats"], top_k=4)[0]) == ["2"]
    assert not caplog.records


def test_a_text_without_words_has_no_sparse_vector(store):
    assert sparse_of(store, "3") is None
    store.upsert([Document("1", "of the")], VECTORS[:1])
    assert sparse_of(store, "1") is None
    assert ids(store.search_words_batch(["purrs"], top_k=4)[0]) == []


def test_update_meta_keeps_the_words(store):
    before = sparse_of(store, "2")
    store.update_meta([Document("2", "not written", {"year": 1})])
    assert sparse_of(store, "2") == before


def test_a_batch_counts_the_bytes_of_the_sparse_vectors(store, monkeypatch):
    sent = []
    call = store._connection._call
    monkeypatch.setattr(
        store._connection, "_call", lambda r, *t: (sent.append(r.method), call(r, *t))[1]
    )
    document = Document("5", " ".join(f"word{i}" for i in range(100)))
    monkeypatch.setattr(answers, "BYTES_PER_REQUEST", 6000)
    # 2,000 bytes of text and payload, and 100 ids and weights of 20 bytes each.
    documents = [document, Document("6", document.text)]
    store.upsert(documents, VECTORS[:2])
    assert sent.count("upsert") == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_text_without_spaces_is_warned_of_once(empty, caplog, asynchronous):
    documents = [Document(str(i), "北海道の冬は長い。") for i in range(2)]
    empty.prepare(2)
    for _ in range(2):
        if asynchronous:
            asyncio.run(empty.aupsert(documents, VECTORS[:2]))
        else:
            empty.upsert(documents, VECTORS[:2])
    (record,) = caplog.records
    assert "without spaces between words" in record.message
    assert empty.name in record.message


def test_text_without_spaces_is_fine_where_only_vectors_are_searched(memory, caplog):
    dense = QdrantStore(memory, "dense")
    dense.prepare(2)
    dense.upsert([Document("1", "北海道の冬は長い。")], VECTORS[:1])
    assert not caplog.records


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_hybrid_search(layout, memory):
    store = QdrantStore(memory, "words", layout=LAYOUTS[layout], vector_name="v", bm25=BM25)
    store.prepare(2, fingerprint="f1")
    store.upsert(DOCUMENTS, VECTORS)
    assert ids(hybrid(store, "barking cats", top_k=2)) == ["1", "2"]
    assert ids(store.search_words_batch(["storm"], top_k=2)[0]) == ["4"]
    assert store.with_layout(LAYOUTS[layout]).hybrid


def test_dot_products_do_not_change_a_fused_score(memory):
    memory.create_collection(
        "words",
        vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT),
        sparse_vectors_config=IDF,
    )
    store = QdrantStore(memory, "words", bm25=BM25)
    store.prepare(2)
    store.upsert(DOCUMENTS, VECTORS)
    found, by_vector = store.search_batch(
        np.stack([QUERY, QUERY]), top_k=2, queries=["barking cats", "of"]
    )
    assert [hit.score for hit in found] == pytest.approx([1 / 2 + 1 / 3, 1 / 2])
    assert [hit.score for hit in by_vector] == pytest.approx([1, 0.8], abs=1e-6)


@pytest.mark.parametrize("value", [0.0, math.nan])
@pytest.mark.parametrize("fusion", ["rrf", "dbsf"])
def test_a_document_without_a_direction_is_found_by_its_words(store, fusion, value):
    if not store._connection.local:
        pytest.skip("no API writes such a vector")
    backend = store.client._client.collections[store.collection]
    backend.vectors[""][backend.ids[store.layout.point_id("2")]] = value
    if fusion == "dbsf" and math.isnan(value):
        with pytest.raises(StoreError, match=r"not finite, .* fusion='rrf'"):
            hybrid(store, "dogs", fusion=fusion)
        return
    found = hybrid(store, "dogs", fusion=fusion)
    assert len(found) == 4
    scores = {hit.document.id: hit.score for hit in found}
    assert scores["2"] > 0
    assert {hit.document.id: hit.embedding is None for hit in found}["2"]


def test_documents_without_words_are_listed_and_filled(empty):
    empty.prepare(2, fingerprint="f1")
    point_id = empty.layout.point_id
    empty.client.upsert(
        empty.collection,
        [
            models.PointStruct(
                id=point_id(d.id), vector=row.tolist(), payload=empty.layout.payload(d)
            )
            for d, row in zip(DOCUMENTS, VECTORS, strict=True)
        ],
    )
    assert sorted(empty.ids_without_words()) == ["1", "2", "3", "4"]
    assert empty.write_words(DOCUMENTS[1:]) == 2
    assert sorted(empty.ids_without_words()) == ["1", "3"]
    assert ids(empty.search_words_batch(["cats"], top_k=4)[0]) == ["2"]
    stored = empty.get(["2"], with_embeddings=True)["2"]
    np.testing.assert_array_equal(stored.embedding, VECTORS[1])
    assert stored.document == DOCUMENTS[1]


def test_a_collection_without_sparse_vectors_has_none_to_fill(memory):
    dense = QdrantStore(memory, "dense")
    dense.prepare(2)
    dense.upsert(DOCUMENTS, VECTORS)
    assert list(dense.ids_without_words()) == []
    with pytest.raises(StoreError, match="cannot be searched by words"):
        dense.write_words(DOCUMENTS)


# Record


def test_a_later_store_uses_the_recorded_settings(tmp_path):
    bm25 = Bm25(language="german", stop_words=("Und",), k1=0.9)
    with_words = QdrantStore.open(tmp_path, "words", bm25=bm25, bm25_name="text-sparse")
    assert (with_words.bm25, with_words.hybrid) == (bm25, True)
    with_words.prepare(2, fingerprint="f1", model="m")
    with_words.close()
    store = QdrantStore.open(tmp_path, "words")
    store.prepare(2, fingerprint="f1")
    store.upsert([Document("1", "Die Katzen und Hunde")], VECTORS[:1])
    assert (store.bm25, store.hybrid, store.fingerprint, store.model) == (bm25, True, "f1", "m")
    assert ids(store.search_words_batch(["Katze"], top_k=1)[0]) == ["1"]
    store.close()


def test_copies_and_pickles_search_by_words(tmp_path):
    store = QdrantStore.open(tmp_path, "words", bm25=BM25)
    store.prepare(2)
    store.upsert(DOCUMENTS, VECTORS)
    copied = copy.copy(store)
    assert ids(copied.search_words_batch(["storm"], top_k=1)[0]) == ["4"]
    copied.close()
    pickled = pickle.dumps(store)
    store.close()
    again = pickle.loads(pickled)
    assert (again.bm25, ids(hybrid(again, "barking cats", top_k=2))) == (BM25, ["1", "2"])
    again.close()


def test_other_settings_than_the_recorded_ones_are_refused(store):
    for options in ({"bm25": Bm25(language="german")}, {"bm25": BM25, "bm25_name": "other"}):
        other = QdrantStore(store.client, store.collection, **options)
        for use in (lambda s: s.prepare(2), lambda s: s.hybrid, lambda s: s.search(QUERY, top_k=1)):
            with pytest.raises(
                StoredVectorMismatch, match=r"was written with Bm25.*leave bm25 out"
            ):
                use(other)


def test_a_collection_without_the_sparse_vector_is_refused(memory):
    dense = QdrantStore(memory, "dense")
    dense.prepare(2)
    assert (dense.bm25, dense.hybrid) == (None, False)
    for search in (
        lambda: dense.search_words_batch(["cats"], top_k=1),
        lambda: hybrid(dense, "cats"),
    ):
        with pytest.raises(StoreError, match=r"cannot be searched by words: give bm25=Bm25"):
            search()
    with pytest.raises(StoreError, match=r"no sparse vector 'bm25' .*another collection"):
        QdrantStore(memory, "dense", bm25=BM25).prepare(2)


@pytest.mark.parametrize("fingerprint", [None, "f1"])
def test_a_sparse_vector_is_added_as_the_error_says_and_recorded(memory, fingerprint):
    dense = QdrantStore(memory, "dense")
    dense.prepare(2, fingerprint=fingerprint, model="m")
    dense.upsert(DOCUMENTS, VECTORS)
    store = QdrantStore(memory, "dense", bm25=BM25)
    with pytest.raises(StoreError, match=r"call add_words\(\) of the store"):
        store.prepare(2, fingerprint="f1")
    for _ in range(2):
        store.add_words()
    store.prepare(2, fingerprint="f1", model="m")
    assert store.write_words(DOCUMENTS) == 3
    dense.upsert([Document("5", "A cat.")], VECTORS[1:2])  # an open store notices the record
    assert ids(store.search_words_batch(["cat"], top_k=1)[0]) == ["5"]
    dense.delete(["5"])
    later = QdrantStore(memory, "dense")
    assert (later.bm25, later.fingerprint) == (BM25, fingerprint)
    assert ids(hybrid(later, "barking cats", top_k=2)) == ["1", "2"]


def test_a_sparse_vector_without_a_record_is_used_only_if_the_caller_says_so(memory):
    memory.create_collection(
        "theirs",
        vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE),
        sparse_vectors_config={"s": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    theirs = QdrantStore(memory, "theirs")
    theirs.upsert(DOCUMENTS, VECTORS)
    assert (theirs.bm25, theirs.hybrid) == (None, False)
    with_words = models.PointVectors(
        id=theirs.layout.point_id("1"), vector={"s": models.SparseVector(indices=[1], values=[1.0])}
    )
    memory.update_vectors("theirs", [with_words])
    named = QdrantStore(memory, "theirs", bm25=BM25, bm25_name="s")
    named.prepare(2, fingerprint="f1")
    assert (named.bm25, named.hybrid, named.fingerprint) == (BM25, True, None)
    named.upsert(DOCUMENTS, VECTORS)
    assert ids(named.search_words_batch(["storm"], top_k=1)[0]) == ["4"]
    assert not QdrantStore(memory, "theirs").hybrid


def test_an_empty_collection_gets_the_record_of_the_words(memory):
    memory.create_collection(
        "new",
        vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE),
        sparse_vectors_config=IDF,
    )
    QdrantStore(memory, "new").prepare(2, fingerprint="f1", model="m")
    assert not QdrantStore(memory, "new").hybrid
    QdrantStore(memory, "new", bm25=BM25).prepare(2)
    store = QdrantStore(memory, "new")
    assert (store.bm25, store.fingerprint, store.model) == (BM25, "f1", "m")


def test_scores_without_an_idf_are_refused_with_the_way_out(memory):
    memory.create_collection(
        "theirs",
        vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE),
        sparse_vectors_config={"bm25": models.SparseVectorParams()},
    )
    store = QdrantStore(memory, "theirs", bm25=BM25)
    store.prepare(2)
    store.upsert(DOCUMENTS, VECTORS)
    assert len(store.search(QUERY, top_k=4)) == 4
    with pytest.raises(StoreError, match="no IDF modifier") as error:
        hybrid(store, "cats")
    call = str(error.value).split("call ")[1].split(", or")[0]
    assert eval(call, {"client": memory, "models": models})
    store.upsert(DOCUMENTS, VECTORS)
    assert ids(hybrid(store, "barking cats", top_k=2)) == ["1", "2"]


def test_a_collection_that_was_made_again_without_words_is_noticed(memory):
    store = QdrantStore(memory, "words", bm25=BM25)
    store.prepare(2)
    recorded = QdrantStore(memory, "words")
    recorded.prepare(2)
    memory.delete_collection("words")
    QdrantStore(memory, "words").prepare(2)
    with pytest.raises(StoreError, match="no sparse vector 'bm25'"):
        store.upsert(DOCUMENTS, VECTORS)
    with pytest.raises(StoredVectorMismatch, match="another one since it was prepared"):
        recorded.upsert(DOCUMENTS, VECTORS)


@pytest.mark.parametrize(
    "damage", [{"bm25": {"language": "klingon"}}, {"bm25": 3}, {"bm25_name": None}]
)
def test_a_damaged_record_of_the_words_is_refused(memory, damage):
    store = QdrantStore(memory, "words", bm25=BM25)
    store.prepare(2)
    metadata = memory.get_collection("words").config.metadata
    memory.update_collection("words", metadata={"e2rank": {**metadata["e2rank"], **damage}})
    with pytest.raises(StoreError, match="record of Bm25 is damaged, or of a newer version"):
        QdrantStore(memory, "words").search(QUERY, top_k=1)


def test_other_sparse_vectors_may_be_added_beside_the_words(memory):
    options = {"sparse_vectors_config": {"splade": models.SparseVectorParams()}}
    store = QdrantStore(memory, "words", bm25=BM25, collection_options=options)
    store.prepare(2)
    assert set(memory.get_collection("words").config.params.sparse_vectors) == {"bm25", "splade"}


def test_the_sparse_vector_must_have_a_name():
    with pytest.raises(ValueError, match="bm25_name must be the name"):
        QdrantStore.open(":memory:", "words", bm25=BM25, bm25_name="")
