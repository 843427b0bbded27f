"""Checks that a Qdrant folder holds exactly what its record says.

Qdrant does not notice a loss. It opens a collection without its points as an empty one, and a
folder without its record as a new one. A new collection gets the points of an old one that are
still in its place.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from e2rank_rag.errors import StoreError

RECORD = "meta.json"
STORAGE = "storage.sqlite"


def check_complete(folder: Path) -> None:
    """StoreError if a recorded collection has no points file, or a points file has no record."""
    collections = _recorded(folder / RECORD)
    places = {(folder / "collection" / name).resolve(): name for name in collections}
    for place, name in places.items():
        storage = place / STORAGE
        if not storage.is_file() or storage.stat().st_size == 0:
            raise StoreError(
                f"{folder} lost the documents of its collection {name!r}: {storage} is missing or "
                f"empty. Restore it from a copy, or delete the folder and index again"
            )
    for storage in sorted((folder / "collection").rglob(STORAGE)):
        left = _count(storage) if storage.parent.resolve() not in places else 0
        if left:
            raise StoreError(
                f"{folder} lost its record of a collection: {storage} holds {left} documents, and "
                f"{folder / RECORD} says nothing of them. Restore that file from a copy, or delete "
                f"the folder and index again"
            )


def refuse_left_over(folder: Path, collection: str) -> None:
    """StoreError if a new collection would begin with an old one's documents."""
    storage = folder / "collection" / collection / STORAGE
    left = _count(storage) if storage.is_file() else 0
    if left:
        raise StoreError(
            f"collection {collection!r} is not on record in folder {folder}, but {storage} holds "
            f"{left} documents of an earlier one: restore {RECORD} from a copy, or delete "
            f"{storage.parent} first"
        )


def _recorded(record: Path) -> Mapping[str, Any]:
    """The recorded collections, each with its configuration."""
    if not record.exists():
        return {}
    try:
        meta = json.loads(record.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{record} is damaged and cannot be read ({type(error).__name__}: {error}): restore it "
            f"from a copy, or delete the folder and index again"
        ) from error
    collections = _mapping(
        _mapping(meta, "the file", record).get("collections"), "collections", record
    )
    for name, config in collections.items():
        _mapping(config, f"collection {name!r}", record)
    for alias, name in _mapping(meta.get("aliases"), "aliases", record).items():
        if not isinstance(name, str) or name not in collections:
            raise StoreError(
                f"{record} is damaged: alias {alias!r} is of {name!r}, which is no collection: "
                f"restore it from a copy, or delete the folder and index again"
            )
    return collections


def _mapping(value: Any, what: str, record: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise StoreError(
            f"{record} is damaged: {what} is {type(value).__name__}, not an object: restore it "
            f"from a copy, or delete the folder and index again"
        )
    return value


def _count(storage: Path) -> int:
    try:
        with closing(sqlite3.connect(storage)) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM points").fetchone()
    except sqlite3.Error:  # no table of points
        return 0
    return int(count)
