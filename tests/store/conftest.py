"""Clients and empty stores for the tests of the store."""

from __future__ import annotations

import os
import uuid

import pytest
from qdrant_client import QdrantClient

from e2rank_rag.store import QdrantStore

SERVER = os.environ.get("E2RANK_TEST_QDRANT_URL")


@pytest.fixture(params=["memory", "folder", pytest.param("server", marks=pytest.mark.server)])
def opened(request, tmp_path):
    """Opens stores, whose collections do not exist yet, in one place of each kind."""
    if request.param == "server" and SERVER is None:
        pytest.skip("E2RANK_TEST_QDRANT_URL is not set")
    location = {"memory": ":memory:", "folder": tmp_path / "index", "server": SERVER}[request.param]
    stores = []

    def open_store(**options):
        stores.append(QdrantStore.open(location, f"test-{uuid.uuid4().hex}", **options))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()
        if request.param == "server":
            client = QdrantClient(url=SERVER, check_compatibility=False)
            client.delete_collection(store.collection)
            client.close()


@pytest.fixture
def memory():
    client = QdrantClient(":memory:")
    yield client
    client.close()
