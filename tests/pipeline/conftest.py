"""The documents that are searched, and stores that hold them."""

from __future__ import annotations

import pytest

from e2rank_rag.types import Document
from tests.kit import filled_store

DOCUMENTS = [
    Document("cats", "cats purr, cats sleep, cats purr again", {"kind": "animal", "year": 2001}),
    Document("dogs", "dogs bark, dogs dig, dogs bark again", {"kind": "animal", "year": 2002}),
    Document("ferry", "A ferry crosses the strait four times a day.", {"kind": "traffic"}),
    Document("bridge", "The oldest bridge carries trams and bicycles.", {"kind": "traffic"}),
    Document("bread", "Bread rises because yeast turns sugar into carbon dioxide.", {}),
    Document("prime", "A prime number has no divisors but one and itself.", {}),
    Document("ice", "Glaciers move downhill under their own weight.", {}),
    Document("router", "To reset the router, hold the button for ten seconds.", {}),
]
TEXTS = [document.text for document in DOCUMENTS]
QUERY, OTHER_QUERY = "Which animals purr?", "When does the ferry cross?"


@pytest.fixture(params=["bert", "qwen3"])
def encoder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(encoder):
    store = filled_store(encoder, DOCUMENTS)
    yield store
    store.close()


@pytest.fixture
def foreign(encoder):
    """A collection that says nothing about who wrote its vectors."""
    store = filled_store(encoder, DOCUMENTS, fingerprint=False)
    yield store
    store.close()
