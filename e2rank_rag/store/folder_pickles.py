"""Checks the pickles in a Qdrant folder before Qdrant opens it, because a pickle can run code.

Qdrant pickles its own records with plain values. A pickle that names anything else is refused.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from e2rank_rag.errors import StoreError

_RECORDS = "qdrant_client.http.models.models"
_ALLOWED = {
    (_RECORDS, "PointStruct"),
    (_RECORDS, "SparseVector"),
    # In folders of older clients a payload may hold these in addition to JSON.
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
}
_TABLE = "create table points (id text primary key, point blob)"
_LEGACY = "storage.dbm"


def check_folder(folder: Path) -> None:
    """StoreError if opening the folder could run code; other damage shows when it is opened.

    Raises:
        OSError, ValueError, sqlite3.Error, pickle.UnpicklingError: it cannot be read.
    """
    for storage in _storages(folder):
        with closing(sqlite3.connect(storage)) as connection:
            _check_table(connection, storage)
            for (point,) in connection.execute("SELECT point FROM points"):
                _check_point(point, storage)


def _storages(folder: Path) -> Iterator[Path]:
    """The files that Qdrant may read: those of the recorded collections, and any others there."""
    base = folder / "collection"
    places = {path.parent for path in base.rglob("storage.*")}
    record = folder / "meta.json"
    if record.is_file():
        places |= {Path(os.path.join(base, name)) for name in _recorded(record)}
    for place in sorted(places):
        if any(place.glob(f"{_LEGACY}*")):
            raise StoreError(
                f"{place} holds {_LEGACY}, a pickle of an old client: index into another folder"
            )
        storage = place / "storage.sqlite"
        if storage.is_file() and storage.stat().st_size:
            yield storage


def _recorded(record: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(record.read_bytes())["collections"]]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{record} is no list of collections") from error


def _check_table(connection: sqlite3.Connection, storage: Path) -> None:
    """Refuse a view or a virtual table, which could give Qdrant other points than it gave here."""
    found = connection.execute(
        "SELECT type, sql FROM sqlite_master WHERE name = 'points' COLLATE NOCASE"
    ).fetchall()
    if [(kind, " ".join(sql.lower().split())) for kind, sql in found] not in (
        [],
        [("table", _TABLE)],
    ):
        raise StoreError(f"{storage} holds no table of points as Qdrant makes it: do not open it")
    if not found:
        raise sqlite3.DatabaseError(f"{storage} has no table of points")


def _check_point(point: Any, storage: Path) -> None:
    if not isinstance(point, bytes):
        raise pickle.UnpicklingError(f"{storage} holds a point that is no pickle")
    try:
        record = _RecordsOnly(io.BytesIO(point), storage).load()
    except StoreError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise pickle.UnpicklingError(f"{storage} holds a damaged point: {error}") from error
    if type(record).__name__ != "PointStruct":
        raise pickle.UnpicklingError(
            f"{storage} holds a {type(record).__name__} in place of a point"
        )


class _RecordsOnly(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storage: Path) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise StoreError(
                f"{self._storage} holds a pickle that names {module}.{name}, which Qdrant does not "
                "write: opening the folder would run it; if you wrote it yourself, open it with "
                "QdrantClient(path=...) and give that client to QdrantStore"
            )
        return super().find_class(module, name)
