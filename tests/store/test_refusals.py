"""What QdrantStore refuses to write: it says which document and why, and writes nothing."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document

VECTORS = np.eye(3, dtype=np.float32)


@pytest.fixture
def store():
    """Three documents in memory."""
    store = QdrantStore.open(":memory:", "c")
    store.prepare(3)
    store.upsert([Document(id, "text") for id in ("north", "east", "west")], VECTORS)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([np.nan, 0, 0], "'b' is not finite"),
        ([np.inf, 0, 0], "'b' is not finite"),
        ([0, 0, 0], "'b' is zero"),
    ],
)
def test_bad_vector_is_refused_by_document_before_anything_is_written(store, bad, reason):
    with pytest.raises(ValueError, match=reason):
        store.upsert([Document("a", ""), Document("b", "")], np.array([[1.0, 0, 0], bad]))
    assert store.count() == 3


@pytest.mark.parametrize(
    ("embeddings", "reason"),
    [
        (np.ones((1, 2), dtype=np.float32), r"\[n, 3\], got \[1, 2\]"),
        (np.ones(3, dtype=np.float32), r"got \[3\]"),
        (np.ones((2, 3), dtype=np.float32), "1 documents need as many embeddings, got 2"),
        (np.ones((1, 3), dtype=np.int64), "dtype int64"),
        (np.array([["x", "y", "z"]]), "must be floats"),
    ],
)
def test_embeddings_of_the_wrong_kind_are_refused(store, embeddings, reason):
    with pytest.raises(ValueError, match=reason):
        store.upsert([Document("a", "")], embeddings)


def test_id_given_twice_in_one_call_is_refused(store):
    twice = [Document("a", "1"), Document("a", "2")]
    with pytest.raises(ValueError, match=r"\['a'\] come more than once"):
        store.upsert(twice, VECTORS[:2])
    with pytest.raises(ValueError, match=r"\['a'\] come more than once"):
        store.update_meta(twice)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (date(2024, 1, 1), "datetime.date"),
        ({1, 2}, "builtins.set"),
        (np.float64(0.5), "numpy.float64"),
        (np.int64(3), "numpy.int64"),
        (np.zeros(2), "numpy.ndarray"),
        (float("nan"), "nan"),
        (2**63, "9223372036854775808"),
        (b"x", "builtins.bytes"),
    ],
)
def test_meta_that_json_cannot_hold_is_refused_by_document_and_key(store, value, named):
    document = Document("a", "", {"outer": [{"key": value}]})
    with pytest.raises(ValueError, match=r"meta\['outer'\]\[0\]\['key'\] of document 'a'.*") as bad:
        store.upsert([document], VECTORS[:1])
    assert named in str(bad.value)
    with pytest.raises(ValueError, match="of document 'a'"):
        store.update_meta([document])
    assert store.count() == 3


def test_meta_keys_must_be_text(store):
    with pytest.raises(ValueError, match="meta key 3 of document 'a' is int"):
        store.upsert([Document("a", "", {3: "x"})], VECTORS[:1])


@pytest.mark.parametrize(
    "document",
    [
        Document("bad\ud800", ""),
        Document("bad", "text \ud800"),
        Document("bad", "", {"key": ["\ud800"]}),
        Document("bad", "", {"\ud800": 1}),
    ],
)
def test_lone_surrogates_are_refused_by_document(store, document):
    with pytest.raises(ValueError, match=r"'bad.*half of a surrogate pair"):
        store.upsert([Document("good", ""), document], VECTORS[:2])
    assert store.count() == 3


@pytest.mark.parametrize("document", [Document(7, ""), Document("a", None), Document("a", "", [1])])
def test_documents_of_the_wrong_types_are_refused(store, document):
    with pytest.raises(ValueError, match=r"is int, not str|is NoneType, not str|not a mapping"):
        store.upsert([document], VECTORS[:1])
