"""Vectors are reused once two of them are known to be this model's."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.stored_vectors import SAME, CandidateVectors
from e2rank_rag.types import Document, Hit
from tests.encoders import CountingEncoder, TableEncoder

TABLE = TableEncoder({"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1], "far": [1, 1, 1]})


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
    filled, counts = CandidateVectors(table, "trust").fill(lists)
    assert [[h.document.id for h in hits] for hits in filled] == [["a", "b"], [], ["c", "far"]]
    for h in filled[0] + filled[2]:
        np.testing.assert_array_equal(h.embedding, TABLE.encode_documents([h.document.id])[0])
    assert (counts.reused, counts.encoded) == (2, 2)
    assert table.documents == ["a", "far"]
    assert lists[0][0].embedding is None


def test_nothing_asked_is_nothing_done(table):
    filled, counts = CandidateVectors(table).fill([[], []])
    assert filled == [[], []]
    assert (counts.reused, counts.encoded) == (0, 0)
    assert table.documents == []


def test_the_probe_takes_the_first_and_the_last_stored_vector(table):
    CandidateVectors(table).probe([[hit("far"), stored("a")], [stored("b"), stored("c")]])
    assert table.documents == ["a", "c"]


def test_a_source_is_probed_once(table):
    vectors = CandidateVectors(table)
    for _ in range(3):
        vectors.fill([[stored("a"), stored("b")]])
    assert table.documents == ["a", "b"]
    vectors.fill([[stored("a", "other"), stored("b", "other")]])
    assert len(table.documents) == 4


def test_one_vector_alone_does_not_settle_it(table):
    vectors = CandidateVectors(table)
    vectors.fill([[stored("a"), hit("b")]])
    vectors.fill([[stored("a"), stored("c")]])
    vectors.fill([[stored("a"), stored("c")]])
    assert table.documents == ["a", "b", "a", "c"]  # probe, encode; probe; nothing


def test_a_trusted_source_is_not_probed(table):
    vectors = CandidateVectors(table)
    vectors.trust("s")
    vectors.fill([[stored("a"), stored("b")]])
    assert table.documents == []


@pytest.mark.parametrize("policy", ["trust", "ignore"])
def test_only_the_policy_check_probes(table, policy):
    wrong = [[hit("a", [0, 1, 0]), hit("b", [1, 0, 0])]]
    CandidateVectors(table, policy).probe(wrong)
    assert table.documents == []


def test_ignore_encodes_everything(table):
    wrong = [[hit("a", [0, 1, 0]), hit("b", [1, 0])]]
    filled, counts = CandidateVectors(table, "ignore").fill(wrong)
    np.testing.assert_array_equal([h.embedding for h in filled[0]], np.eye(3)[:2])
    assert (counts.reused, counts.encoded) == (0, 2)


@pytest.mark.parametrize(("cosine", "accepted"), [(SAME + 0.001, True), (SAME - 0.001, False)])
def test_a_cosine_below_the_limit_is_another_model(table, cosine, accepted):
    near = hit("b", [0, cosine, np.sqrt(1 - cosine**2)])
    vectors = CandidateVectors(table)
    if accepted:
        vectors.fill([[stored("a"), near]])
        return
    with pytest.raises(StoredVectorMismatch, match=r"'b' in s has cosine 0\.979 with what table"):
        vectors.fill([[stored("a"), near]])


def test_vectors_need_not_have_unit_length_to_be_recognised(table):
    CandidateVectors(table).fill([[hit("a", [7, 0, 0]), hit("b", [0, 0.1, 0])]])


@pytest.mark.parametrize("vector", [[0, 0, 0], [np.nan, 0, 0], [-1, 0, 0]])
def test_zero_nan_and_opposite_vectors_are_refused(table, vector):
    with pytest.raises(StoredVectorMismatch, match="document 'a' in the candidates has cosine"):
        CandidateVectors(table).fill([[hit("a", vector, source=""), stored("b", "")]])


def test_a_refused_source_is_refused_again(table):
    vectors = CandidateVectors(table)
    for _ in range(2):
        with pytest.raises(StoredVectorMismatch):
            vectors.fill([[stored("a"), hit("b", [1, 0, 0])]])


@pytest.mark.parametrize("policy", ["check", "trust"])
def test_another_dimension_is_refused_wherever_it_stands(table, policy):
    hits = [stored("a"), hit("b", [0, 1], source="news"), stored("c")]
    vectors = CandidateVectors(table, policy)
    with pytest.raises(
        StoredVectorMismatch, match="document 'b' in news has 2 dimensions, table has 3"
    ):
        vectors.fill([hits])


def test_an_unknown_policy_is_refused(table):
    with pytest.raises(ValueError, match=r"'check', 'trust', 'ignore'.*got 'chek'"):
        CandidateVectors(table, "chek")


def test_the_probe_reports_no_cut(bert, caplog):
    long = "cats purr " * 500
    vector = bert.encode_documents([long], on_cut=lambda cut: None)[0]
    CandidateVectors(bert).fill([[hit("a", vector, long), hit("b", vector, long)]])
    assert caplog.records == []


def test_the_sources_of_one_call_are_probed_each(table):
    wrong = hit("b", [1, 0, 0], source="other")
    with pytest.raises(StoredVectorMismatch, match="'b' in other has cosine"):
        CandidateVectors(table).fill([[stored("a"), wrong, stored("c")]])
    assert table.documents == ["a", "c", "b"]


def test_what_was_encoded_here_is_not_probed_later(table):
    vectors = CandidateVectors(table)
    filled, _ = vectors.fill([[hit("a"), hit("b")]])
    assert vectors.fill(filled)[1].reused == 2
    assert table.documents == ["a", "b"]


def test_what_another_encoder_made_on_the_spot_is_probed(table):
    filled, _ = CandidateVectors(
        TableEncoder({"a": [0, 1, 0], "b": [1, 0, 0]}, fingerprint="u")
    ).fill([[hit("a"), hit("b")]])
    with pytest.raises(StoredVectorMismatch, match="'a' in u has cosine"):
        CandidateVectors(table).fill(filled)
