"""A sparse vector of words for a collection that has none: what `add_words` refuses."""

from __future__ import annotations

import pytest
from qdrant_client import QdrantClient, models

from e2rank_rag.errors import CollectionMissing, StoreError
from e2rank_rag.store import QdrantStore
from e2rank_rag.words import Bm25


def test_words_are_added_for_a_bm25_and_to_what_exists(monkeypatch):
    memory = QdrantClient(":memory:")
    QdrantStore(memory, "dense").prepare(2)
    with pytest.raises(ValueError, match=r"open the store with bm25=Bm25\(...\)"):
        QdrantStore(memory, "dense").add_words()
    with pytest.raises(CollectionMissing, match="missing"):
        QdrantStore(memory, "missing", bm25=Bm25()).add_words()
    monkeypatch.delattr(models, "SparseVectorNameConfig")
    with pytest.raises(StoreError, match=r"install 1\.18 or newer"):
        QdrantStore(memory, "dense", bm25=Bm25()).add_words()


def test_a_folder_keeps_what_was_added(tmp_path):
    for bm25 in (None, Bm25(language="german")):
        store = QdrantStore.open(tmp_path, "dense", bm25=bm25)
        if bm25 is not None:
            store.add_words()
        store.prepare(2)
        store.close()
    again = QdrantStore.open(tmp_path, "dense")
    assert again.bm25 == Bm25(language="german")
    again.close()
