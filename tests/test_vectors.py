"""Vectors are reused once two of them are known to be this model's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document, Hit
from e2rank_rag.vectors import SAME, CandidateVectors
from tests.encoders import CountingEncoder, TableEncoder, another_model

TABLE = TableEncoder(
    {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1], "far": [1, 1, 1], "lacks": [1, 0, 1]}
)


def hit(id, vector=None, text=None, source="s"):
    embedding = None if vector is None else np.asarray(vector, dtype=np.float32)
    return Hit(Document(id, text or id), 0.0, embedding, source)


def stored(id, source="s"):
    return hit(id, TABLE.encode_documents([id])[0], source=source)


@pytest.fixture
def table():
    return CountingEncoder(TABLE)


def test_missing_vectors_are_encoded_in_their_places(table):
    lists = [[hit("a"), stored("b")], [], [stored("c"), hit("far")]]
    filled, counts = CandidateVectors(table, "trust").attach(lists)
    assert [[h.document.id for h in hits] for hits in filled] == [["a", "b"], [], ["c", "far"]]
    for h in filled[0] + filled[2]:
        np.testing.assert_array_equal(h.embedding, TABLE.encode_documents([h.document.id])[0])
    assert (counts.reused, counts.encoded) == (2, 2)
    assert table.documents == ["a", "far"]
    assert lists[0][0].embedding is None


def test_nothing_asked_is_nothing_done(table):
    filled, counts = CandidateVectors(table).attach([[], []])
    assert filled == [[], []]
    assert (counts.reused, counts.encoded) == (0, 0)
    assert table.documents == []


def test_the_probe_of_a_store_takes_the_first_vector_and_the_one_least_like_it(table):
    CandidateVectors(table).attach([[hit("lacks"), stored("a"), stored("far")], [stored("b")]])
    assert table.documents == ["a", "b", "lacks"]


def test_vectors_that_were_compared_are_not_compared_again(table):
    vectors = CandidateVectors(table)
    for _ in range(3):
        vectors.attach([[stored("a"), stored("b"), stored("c")]])
    assert table.documents == ["a", "b"]
    vectors.attach([[stored("a", "other"), stored("b", "other"), stored("c", "other")]])
    assert len(table.documents) == 2  # the same texts have the same vectors there
    vectors.attach([[stored("a"), stored("c")]])
    assert table.documents == ["a", "b", "c"]


def test_a_source_that_changed_under_a_reranker_is_refused(table):
    vectors = CandidateVectors(table)
    vectors.attach([[stored("a"), stored("b"), stored("c")]])
    turned = [hit("a", [0, 1, 0]), hit("b", [0, 0, 1]), hit("c", [1, 0, 0])]
    for _ in range(2):
        with pytest.raises(StoredVectorMismatch, match=r"'a' in s has cosine 0\.000"):
            vectors.attach([turned])


def test_a_recorded_fingerprint_is_that_of_one_hit_and_of_no_store(table):
    recorded = replace(hit("b", [1, 0, 0]), fingerprint=table.fingerprint)
    vectors = CandidateVectors(table)
    vectors.attach([[stored("a"), recorded]])
    with pytest.raises(StoredVectorMismatch):
        vectors.attach([[stored("a"), hit("b", [1, 0, 0])]])


RANDOM = np.random.default_rng(3)
MANY = TableEncoder(
    {f"t{n}": vector for n, vector in enumerate(RANDOM.normal(size=(400, 64)) + 0.7)}
)


def joined(foreign, size, *, source=""):
    """A list of so many candidates, some of which another model embedded, in any order."""
    hits = [
        hit(text, MANY.encode_documents([text])[0], source=source)
        for text in (f"t{n}" for n in RANDOM.choice(400, size, replace=False))
    ]
    turned = MANY.encode_documents([h.document.text for h in hits]) @ another_model(64)
    for place in RANDOM.choice(size, foreign, replace=False):
        hits[place] = hit(hits[place].document.id, turned[place], source=source)
    return hits


@pytest.mark.parametrize("size", [5, 20, 100])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_foreign_vectors_in_a_joined_list_are_refused_wherever_they_stand(size, share):
    vectors = CandidateVectors(CountingEncoder(MANY))
    for _ in range(20):
        vectors.attach([joined(0, size)])  # good lists settle nothing for others
        with pytest.raises(StoredVectorMismatch, match="in the candidates has cosine"):
            vectors.attach([joined(max(1, int(share * size)), size)])


def test_a_joined_list_costs_three_encodings_at_most(table):
    counting = CountingEncoder(MANY)
    vectors = CandidateVectors(counting)
    lists = [joined(0, 100), joined(0, 100)]
    vectors.attach(lists)
    assert 3 <= len(counting.documents) <= 6
    for _ in range(100):
        vectors.attach(lists)
    texts = {h.document.text for hits in lists for h in hits}
    assert sorted(counting.documents) == sorted(texts)  # each once


def test_vectors_with_the_encoders_fingerprint_are_not_probed(table):
    recorded = [replace(stored(id), fingerprint=table.fingerprint) for id in "ab"]
    CandidateVectors(table).attach([recorded])
    assert table.documents == []


def test_candidates_that_passed_a_probe_are_not_probed_again(table):
    (hits,) = CandidateVectors(table).probe([[stored("a"), stored("b"), hit("c")]])
    assert [h.fingerprint for h in hits] == [table.fingerprint] * 2 + [None]
    CandidateVectors(table).probe([hits])
    assert table.documents == ["a", "b"]


@pytest.mark.parametrize("policy", ["trust", "ignore"])
def test_only_the_policy_check_probes(table, policy):
    wrong = [[hit("a", [0, 1, 0]), hit("b", [1, 0, 0])]]
    CandidateVectors(table, policy).attach(wrong)
    assert table.documents == ([] if policy == "trust" else ["a", "b"])


def test_ignore_encodes_everything(table):
    wrong = [[hit("a", [0, 1, 0]), hit("b", [1, 0])]]
    filled, counts = CandidateVectors(table, "ignore").attach(wrong)
    np.testing.assert_array_equal([h.embedding for h in filled[0]], np.eye(3)[:2])
    assert (counts.reused, counts.encoded) == (0, 2)


@pytest.mark.parametrize(("cosine", "accepted"), [(SAME + 0.001, True), (SAME - 0.001, False)])
def test_a_cosine_below_the_limit_is_another_model(table, cosine, accepted):
    near = hit("b", [0, cosine, np.sqrt(1 - cosine**2)])
    vectors = CandidateVectors(table)
    if accepted:
        vectors.attach([[stored("a"), near]])
        return
    with pytest.raises(
        StoredVectorMismatch, match=r"'b' in s has cosine 0\.979 with the vector that table"
    ):
        vectors.attach([[stored("a"), near]])


def test_vectors_need_not_have_unit_length_to_be_recognised(table):
    CandidateVectors(table).attach([[hit("a", [7, 0, 0]), hit("b", [0, 0.1, 0])]])


@pytest.mark.parametrize("policy", ["check", "trust"])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_vector_without_a_direction_is_made_anew_and_its_document_named(
    table, policy, value, place, caplog
):
    hits = [stored("a"), stored("b"), stored("c")]
    broken = replace(hits[place], embedding=np.array([value, 0, 0], np.float32))
    hits[place] = broken
    filled, counts = CandidateVectors(table, policy).attach([hits])
    np.testing.assert_array_equal([h.embedding for h in filled[0]], np.eye(3))
    assert (counts.reused, counts.encoded) == (2, 1)
    assert f"the vector of document {broken.document.id!r} in s" in caplog.text


@pytest.mark.parametrize("length", [1e-30, 0.5, 100.0, 1e30])
def test_candidates_are_scored_as_cosines_whatever_their_length(table, length):
    long = replace(stored("far"), embedding=np.float32(length) * stored("far").embedding)
    (filled,), _ = CandidateVectors(table, "trust").attach([[long, stored("a")]])
    np.testing.assert_allclose(filled[0].embedding, stored("far").embedding, rtol=1e-6)
    assert filled[0].embedding.dtype == np.float32


@pytest.mark.parametrize("embedding", [np.array(["1", "0", "0"]), np.array([True, False, True])])
def test_a_vector_that_is_none_is_an_error_that_names_the_document(table, embedding):
    with pytest.raises(ValueError, match="document 'b' in s: a vector is a list of numbers"):
        CandidateVectors(table).attach([[stored("a"), replace(stored("b"), embedding=embedding)]])


def test_an_opposite_vector_is_refused(table):
    with pytest.raises(StoredVectorMismatch, match="document 'a' in the candidates has cosine"):
        CandidateVectors(table).attach([[hit("a", [-1, 0, 0], source=""), stored("b", "")]])


def test_a_refused_source_is_refused_again(table):
    vectors = CandidateVectors(table)
    for _ in range(2):
        with pytest.raises(StoredVectorMismatch):
            vectors.attach([[stored("a"), hit("b", [1, 0, 0])]])


@pytest.mark.parametrize("policy", ["check", "trust"])
def test_another_dimension_is_refused_wherever_it_stands(table, policy):
    hits = [stored("a"), hit("b", [0, 1], source="news"), stored("c")]
    vectors = CandidateVectors(table, policy)
    with pytest.raises(
        StoredVectorMismatch, match="document 'b' in news has 2 dimensions, table has 3"
    ):
        vectors.attach([hits])


def test_an_unknown_policy_is_refused(table):
    with pytest.raises(ValueError, match=r"'check', 'trust', 'ignore'.*got 'chek'"):
        CandidateVectors(table, "chek")


def test_the_probe_reports_no_cut(bert, caplog):
    long = "cats purr " * 500
    vector = bert.encode_documents([long], on_cut=lambda cut: None)[0]
    CandidateVectors(bert).attach([[hit("a", vector, long), hit("b", vector, long)]])
    assert caplog.records == []


def test_the_sources_of_one_call_are_probed_each(table):
    wrong = hit("b", [1, 0, 0], source="other")
    with pytest.raises(StoredVectorMismatch, match="'b' in other has cosine"):
        CandidateVectors(table).attach([[stored("a"), wrong, stored("c")]])
    assert table.documents == ["a", "c", "b"]


def test_what_was_encoded_here_is_not_probed_later(table):
    vectors = CandidateVectors(table)
    filled, _ = vectors.attach([[hit("a"), hit("b")]])
    assert vectors.attach(filled)[1].reused == 2
    assert table.documents == ["a", "b"]


def test_what_another_encoder_made_on_the_spot_is_probed(table):
    filled, _ = CandidateVectors(
        TableEncoder({"a": [0, 1, 0], "b": [1, 0, 0]}, fingerprint="u")
    ).attach([[hit("a"), hit("b")]])
    with pytest.raises(StoredVectorMismatch, match="'a' in the candidates has cosine"):
        CandidateVectors(table).attach(filled)


# Vectors read from a store


@pytest.fixture
def store():
    store = QdrantStore.open(":memory:", "things")
    documents = [Document("a", "a", {"title": "b"}), Document("b", "changed"), Document("c", "c")]
    store.prepare(3)
    store.upsert(documents, np.eye(3, dtype=np.float32))
    yield store
    store.close()


def has_vector(hits):
    return {h.document.id: h.embedding is not None for h in hits}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stored_vector_is_read_where_the_store_holds_the_same_text(table, store, asynchronous):
    hits = [hit("a", source=""), hit("b", source=""), hit("far", source=""), stored("c")]
    vectors = CandidateVectors(table)
    read = vectors.read(hits, store)
    if asynchronous:
        read = asyncio.run(vectors.aread(hits, store))
    assert has_vector(read) == {"a": True, "b": False, "far": False, "c": True}
    assert [h.source for h in read] == [store.name, "", "", "s"]
    assert hits[0].embedding is None


def test_ids_and_texts_of_a_store_may_be_other_ones(table, store):
    hits = [hit("one", text="b: a"), hit("two", text="b: c"), hit("three")]
    read = CandidateVectors(table).read(
        hits,
        store,
        ids=["a", "c", None],
        text=lambda document: f"{document.meta.get('title')}: {document.text}",
    )
    assert has_vector(read) == {"one": True, "two": False, "three": False}


def test_nothing_is_read_under_ignore(table):
    hits = [hit("a"), stored("b")]
    assert CandidateVectors(table, "ignore").read(hits, None) == hits


def test_a_store_whose_record_names_the_encoder_is_not_probed(table):
    for fingerprint, probed in ((table.fingerprint, 0), (None, 1)):
        store = QdrantStore.open(":memory:", "things")
        store.prepare(3, fingerprint=fingerprint)
        store.upsert([Document("a", "a")], np.eye(3, dtype=np.float32)[:1])
        vectors = CandidateVectors(table)
        vectors.attach([vectors.read([hit("a")], store)])
        assert len(table.documents) == probed
        store.close()
