"""The documents that are indexed, and a store for them."""

from __future__ import annotations

import pytest

from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document
from tests.encoders import CountingEncoder

DOCUMENTS = [
    Document(f"d{i}", f"cats purr and dogs bark {i} times", {"place": i, "tags": ["a", "b"]})
    for i in range(7)
]
TEXTS = [document.text for document in DOCUMENTS]
GOOD_RECORDS = [{"_id": d.id, "text": d.text, "metadata": dict(d.meta)} for d in DOCUMENTS]


@pytest.fixture
def encoder(bert):
    return CountingEncoder(bert)


@pytest.fixture
def store():
    store = QdrantStore.open(":memory:", "things")
    yield store
    store.close()


def stored(store):
    return {id: item.document for id, item in store.get(sorted(store.ids())).items()}
