"""An index is opened to read: nothing in its folder changes, and its lock is not needed."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing

import numpy as np
import pytest

from e2rank_rag.check.examine import Asked, examine
from e2rank_rag.check.gain import measure, searchable
from e2rank_rag.check.opening import opened
from e2rank_rag.check.outline import outline
from e2rank_rag.check.queries import made_up
from e2rank_rag.errors import StoreError
from e2rank_rag.store import QdrantStore
from e2rank_rag.store.connection import Connection
from tests.checking import CONTENTS, DOCUMENTS, fill

VECTORS = np.eye(8, dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "index", VECTORS).close()
    return tmp_path / "index"


def state(folder):
    """Every file of a folder: its content, and when it was written."""
    return {
        path.relative_to(folder): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            os.stat(path).st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def points(folder):
    with opened(str(folder)) as connection:
        return outline(connection, None).points


def test_no_file_of_the_folder_is_written_or_made(folder):
    (folder / ".lock").unlink()
    before = state(folder)
    assert points(folder) == len(DOCUMENTS)
    assert state(folder) == before


def test_a_folder_that_is_open_elsewhere_is_read_as_of_now(folder):
    with closing(QdrantStore.open(folder, "notes")) as store:
        store.delete(["d0", "d1"])
        assert points(folder) == len(DOCUMENTS) - 2


def test_the_copy_is_deleted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    assert points(folder) == len(DOCUMENTS)
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_an_index_stays_as_it_is(tmp_path, make):
    folder = tmp_path / "none"
    if make:
        folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no Qdrant index at .*none.*e2rank index"):
        points(folder)
    assert folder.exists() == make
    assert not make or list(folder.iterdir()) == []


def test_damage_is_told_of_the_folder_and_not_of_its_copy(folder):
    (folder / "collection" / "notes" / "storage.sqlite").unlink()
    with pytest.raises(StoreError, match=f"{folder} lost the documents"):
        points(folder)


def test_an_unreadable_database_is_named(folder):
    storage = folder / "collection" / "notes" / "storage.sqlite"
    storage.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=rf"{storage} cannot be read"):
        points(folder)


def test_an_index_in_memory_cannot_be_checked():
    with pytest.raises(ValueError, match="belongs to its process"), opened(":memory:"):
        pass


def test_a_whole_check_sends_only_requests_that_read(tmp_path, bert, tiny_bert, monkeypatch):
    fill(tmp_path, bert.encode_documents(CONTENTS)).close()
    asked = set()
    send = Connection.send

    def spy(self, request):
        asked.add(request.method)
        return send(self, request)

    monkeypatch.setattr(Connection, "send", spy)
    with opened(str(tmp_path)) as connection:
        findings = examine(connection, Asked(str(tmp_path), [str(tiny_bert)]))
        queries = made_up(findings.sample.texts, seed=0)
        with searchable(connection, findings.place, findings.match, None, 8) as (store, words):
            measure(bert, store, queries, words=words)
    assert asked == {
        "get_collections",
        "get_collection",
        "count",
        "scroll",
        "retrieve",
        "query_batch_points",
    }
