"""The outline of a collection, and the layout of its payloads."""

from __future__ import annotations

import numpy as np
import pytest
from qdrant_client import models

from e2rank_rag.check.opening import opened
from e2rank_rag.check.outline import FoundLayout, found_layout, outline
from e2rank_rag.errors import CollectionMissing, StoreError
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
from e2rank_rag.words import Bm25
from tests.checking import DOCUMENTS, fill, raw_collection

VECTORS = np.eye(8, dtype=np.float32)


def seen(folder, collection=None):
    with opened(str(folder)) as connection:
        return outline(connection, collection)


def test_the_only_collection_is_taken_with_its_record(tmp_path):
    store = QdrantStore.open(tmp_path, "notes", bm25=Bm25())
    store.prepare(8, fingerprint="f", model="m")
    store.upsert(DOCUMENTS, VECTORS)
    store.close()
    found = seen(tmp_path)
    assert (found.collection, found.points, found.sparse) == ("notes", 8, {"bm25": True})
    assert (found.record["model"], found.record["fingerprint"]) == ("m", "f")
    (vector,) = found.vectors
    assert (vector.name, vector.size, vector.distance.value, vector.usable) == (
        None,
        8,
        "Cosine",
        True,
    )


def test_several_collections_are_listed_and_one_can_be_named(tmp_path):
    for name in ("notes", "news"):
        fill(tmp_path, VECTORS, collection=name).close()
    with pytest.raises(StoreError, match=r"there are 2 collections .*: name 'news', 'notes'"):
        seen(tmp_path)
    assert seen(tmp_path, "news").collection == "news"
    with pytest.raises(CollectionMissing, match="'news', 'notes'"):
        seen(tmp_path, "others")


def test_an_index_without_collections_says_so(tmp_path):
    (tmp_path / "meta.json").write_text('{"collections": {}, "aliases": {}}')
    with pytest.raises(StoreError, match="there is no collection"):
        seen(tmp_path)


def test_named_vectors_are_chosen_by_name(tmp_path):
    config = {
        "a": models.VectorParams(size=2, distance=models.Distance.EUCLID),
        "b": models.VectorParams(size=3, distance=models.Distance.DOT),
    }
    raw_collection(tmp_path, [{"x": "y"}], [{"a": [1, 2], "b": [1, 2, 3]}], config=config)
    found = seen(tmp_path)
    assert found.vector("b").size == 3
    assert not found.vector("a").usable
    for name, asked in ((None, "several vectors"), ("c", "no vector 'c'")):
        with pytest.raises(ValueError, match=rf"{asked}: name one of \['a', 'b'\]"):
            found.vector(name)


HAYSTACK = {"id": "1", "content": "text", "meta": {}, "blob": None, "score": None}


@pytest.mark.parametrize(
    ("payloads", "writer", "layout"),
    [
        ([{"id": "1", "content": "text", "meta": {}}], "e2rank_rag", Layout()),
        ([HAYSTACK, HAYSTACK], "qdrant-haystack", Layout()),
        ([{"page_content": "text", "metadata": {}}], "langchain-qdrant", LANGCHAIN_LAYOUT),
        (
            [{"lang": "en", "body": "a long text", "info": {"a": 1}}],
            "unknown",
            Layout(id_key=None, content_key="body", metadata_key="info"),
        ),
    ],
)
def test_payload_keys_tell_the_layout(payloads, writer, layout):
    found = found_layout(payloads)
    assert (found.writer, found.layout) == (writer, layout)
    assert isinstance(found, FoundLayout)
    assert found.guessed == (writer == "unknown")


def test_payloads_without_a_text_are_an_error_that_lists_their_keys():
    with pytest.raises(StoreError, match="there are: n, m"):
        found_layout([{"n": 1, "m": {"a": "b"}}])
