"""Opens an index to read it only: a server, or a copy of an index folder.

Qdrant takes a folder's lock and writes files even to read. A copy needs no lock, so an index that
another process has open can be checked, and so can one on a read-only disk.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from e2rank_rag.errors import StoreError
from e2rank_rag.store.collection import DEFAULT_TIMEOUT_S
from e2rank_rag.store.connection import Connection
from e2rank_rag.store.folder_record import RECORD, STORAGE
from e2rank_rag.store.opening import kind_of, open_client


@contextmanager
def opened(location: str, api_key: str | None = None) -> Iterator[Connection]:
    """A connection to the server at a URL, or to a copy of the index folder; closed at the end.

    Raises:
        FileNotFoundError: no Qdrant folder is there.
        StoreError: the folder is damaged, or holds a pickle that could run code.
        ValueError: the location is neither a folder nor the URL of a server.
    """
    kind = kind_of(location)
    if kind == "memory":
        raise ValueError("an index in memory belongs to its process: name a folder or a URL")
    with ExitStack() as stack:
        place: str | Path = location
        if kind == "folder":
            place = stack.enter_context(_copied(Path(location).expanduser()))
        client = open_client(place, api_key=api_key, prefer_grpc=False, timeout=DEFAULT_TIMEOUT_S)
        connection = Connection(client, owned=True)
        stack.callback(connection.close)
        yield connection


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    """A copy of what Qdrant keeps in a folder, which is deleted at the end."""
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(
            f"no Qdrant index at {folder}, which has no {RECORD}: name the folder that Qdrant "
            f"wrote, or make one with `e2rank index`"
        )
    with TemporaryDirectory(prefix="e2rank-check-") as name:
        copy = Path(name)
        try:
            shutil.copyfile(folder / RECORD, copy / RECORD)
            for storage in sorted((folder / "collection").rglob(STORAGE)):
                _copy_points(storage, copy / storage.relative_to(folder))
            yield copy
        except StoreError as error:
            # What is wrong with the copy is wrong with the folder.
            raise type(error)(str(error).replace(name, str(folder))) from error


def _copy_points(storage: Path, target: Path) -> None:
    """Copy a database as of one moment, even while another process writes into it."""
    target.parent.mkdir(parents=True)
    try:
        with (
            closing(sqlite3.connect(f"{storage.resolve().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as sink,
        ):
            source.backup(sink)
    except sqlite3.Error as error:
        raise StoreError(
            f"{storage} cannot be read ({error}): restore it from a copy, or delete the folder and "
            f"index again"
        ) from error
