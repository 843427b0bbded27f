"""A folder that could run code when it is opened is refused; one that Qdrant wrote is not."""

from __future__ import annotations

import datetime
import decimal
import os
import pickle
import sqlite3
import uuid

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from e2rank_rag.errors import StoreError
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document


class Runs:
    """As a pickle: make this folder when it is read."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "index"
    store = QdrantStore.open(folder, "c")
    store.prepare(3)
    store.upsert(
        [Document(id, "text", {"n": [1, 2.5, None]}) for id in "abc"], np.eye(3, dtype="f4")
    )
    store.close()
    return folder


def storage(folder, collection="c"):
    return folder / "collection" / collection / "storage.sqlite"


def replace_a_point(folder, data):
    with sqlite3.connect(storage(folder)) as connection:
        connection.execute("UPDATE points SET point = ? WHERE rowid = 2", (data,))
    connection.close()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_is_not_qdrants_own_is_refused_and_not_run(
    folder, tmp_path, protocol, nested
):
    evil = Runs(tmp_path / "ran")
    if nested:
        evil = models.PointStruct.model_construct(id="a", vector=[1.0], payload={"content": evil})
    replace_a_point(folder, pickle.dumps(evil, protocol))
    with pytest.raises(StoreError, match=r"names .*, which Qdrant does not write"):
        QdrantStore.open(folder, "c")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["PointStruct.__init__.__globals__", "BaseModel", "Any"])
def test_nothing_else_of_qdrants_module_is_reached(folder, name):
    module = b"qdrant_client.http.models.models"
    data = b"\x80\x04\x8c%c%s\x8c%c%s\x93." % (len(module), module, len(name), name.encode())
    replace_a_point(folder, data)
    with pytest.raises(StoreError, match="which Qdrant does not write"):
        QdrantStore.open(folder, "c")


def test_collections_that_are_not_on_record_are_looked_at_too(folder, tmp_path):
    # Qdrant reads the points of a new collection where a file lies under its name.
    replace_a_point(folder, pickle.dumps(Runs(tmp_path / "ran")))
    (folder / "meta.json").write_text('{"collections": {}, "aliases": {}}')
    with pytest.raises(StoreError, match="which Qdrant does not write"):
        QdrantStore.open(folder, "c")


def test_a_view_in_place_of_the_points_is_refused(folder):
    with sqlite3.connect(storage(folder)) as connection:
        connection.execute("ALTER TABLE points RENAME TO other")
        connection.execute(
            "CREATE VIEW points AS SELECT id, point FROM other WHERE random() % 2 = 0"
        )
    connection.close()
    with pytest.raises(StoreError, match="no table of points as Qdrant makes it"):
        QdrantStore.open(folder, "c")


def test_the_old_form_of_a_folder_is_refused(folder):
    (storage(folder).with_name("storage.dbm")).write_bytes(b"")
    with pytest.raises(StoreError, match="a pickle of an old client"):
        QdrantStore.open(folder, "c")


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"no pickle", "text", pickle.dumps(5), pickle.dumps([1]) + b"x", None]
)
def test_a_damaged_point_is_an_error_that_names_the_folder(folder, data):
    if data is not None and isinstance(data, bytes) and data.endswith(b"x"):
        data = data[:-3]
    replace_a_point(folder, data)
    with pytest.raises(StoreError, match=f"{folder} is no readable Qdrant folder"):
        QdrantStore.open(folder, "c")


def test_what_qdrant_writes_is_opened(tmp_path):
    client = QdrantClient(path=str(tmp_path / "index"))
    client.create_collection(
        "named",
        {"dense": models.VectorParams(size=2, distance=models.Distance.COSINE)},
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    payload = {
        "content": "text",
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        "price": decimal.Decimal("1.5"),
        "key": uuid.UUID(int=7),
        "nested": {"list": [1, None, True, "ü"]},
    }
    sparse = models.SparseVector(indices=[1, 5], values=[0.5, 1.0])
    client.upsert(
        "named",
        [
            models.PointStruct(
                id=1, vector={"dense": [1.0, 0.0], "words": sparse}, payload=payload
            ),
            models.PointStruct(id=str(uuid.UUID(int=3)), vector={"dense": [0.0, 1.0]}),
        ],
    )
    client.close()
    store = QdrantStore.open(tmp_path / "index", "named", vector_name="dense")
    assert store.count() == 2
    store.close()
