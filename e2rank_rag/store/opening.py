"""Opening Qdrant by location: in memory, a folder, or a server's URL."""

from __future__ import annotations

import errno
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from qdrant_client import QdrantClient

from e2rank_rag.errors import StoreError
from e2rank_rag.locks import Lock
from e2rank_rag.store.folder_pickles import check_folder
from e2rank_rag.store.folder_record import check_complete
from e2rank_rag.store.server import server_client

MEMORY = ":memory:"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
SERVER = re.compile(r"https?://[^/]", re.IGNORECASE)
NO_FOLDER = re.compile(
    r"\s*([a-z][a-z0-9+.-]+:/|https?:|https?//|[\w.@\[\]:-]+:\d+/?\s*$)", re.IGNORECASE
)
"""An address without its scheme, or with a wrong one: `localhost:6333`, `htp://x`, `http:/x`."""

_warnings_lock = Lock()


def open_client(
    location: str | Path, *, api_key: str | None, prefer_grpc: bool, timeout: float
) -> QdrantClient:
    """A client for `location`; ValueError where it is none, StoreError where it will not open.

    A server is not contacted yet. A folder is read into memory as a whole; StoreError where it
    holds a pickle that could run code.
    """
    place = str(location)
    kind = kind_of(location)
    if kind == "server":
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        return server_client(
            {"url": place, "api_key": api_key, "prefer_grpc": prefer_grpc, "timeout": timeout}
        )
    if api_key is not None:
        raise ValueError(f"api_key is for servers, and {place!r} is none")
    if kind == "memory":
        return QdrantClient(location=MEMORY)
    return _open_folder(Path(place).expanduser())


def kind_of(location: str | Path) -> Literal["server", "memory", "folder"]:
    """What a location names; ValueError where it is empty or looks like an address and is none.

    A `Path` is always a folder.
    """
    if isinstance(location, Path):
        return "folder"
    if SERVER.match(location):
        return "server"
    if location == MEMORY:
        return "memory"
    if not location.strip() or NO_FOLDER.match(location):
        raise ValueError(
            f"location {location!r} must be ':memory:', a folder, or a URL that begins with "
            f"http:// or https:// (a folder whose name looks like an address is ./NAME)"
        )
    return "folder"


def _open_folder(folder: Path) -> QdrantClient:
    try:
        _refuse_locked(folder)
        check_folder(folder)
        check_complete(folder)
        with size_warning_silenced():
            # One lock guards every call, so SQLite need not insist on its thread.
            return QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(
            f"{folder} is no folder, a file is in the way ({error.filename}): give another location"
        ) from error
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) in READ_ONLY or "readonly" in str(error):
            raise StoreError(
                f"{folder} cannot be written ({error}), and Qdrant writes even to read: make it "
                f"writable for this user, or open a copy"
            ) from error
        raise StoreError(f"{folder} cannot be opened: {error}") from error
    except StoreError:
        raise
    except Exception as error:  # a damaged folder can fail in any way
        if isinstance(error, RuntimeError) and "already accessed" in str(error):
            raise _locked(folder) from error
        raise StoreError(
            f"{folder} is no readable Qdrant folder ({type(error).__name__}: {error}): restore it "
            f"from a copy, or delete it and index again"
        ) from error


def _refuse_locked(folder: Path) -> None:
    """Ask for the lock first: the client reads all points before it asks."""
    if folder.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "a file, not a folder", str(folder))
    # portalocker looks for a writable directory when it is imported, so not at the top.
    import portalocker

    lock_file = folder / ".lock"
    if not lock_file.exists():
        return
    with lock_file.open("r+") as file:
        try:
            portalocker.lock(
                file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
            )
        except portalocker.exceptions.LockException as error:
            raise _locked(folder) from error
        portalocker.unlock(file)


def _locked(folder: Path) -> StoreError:
    return StoreError(
        f"{folder} is open already, in another process or another store of this one: close that, "
        f"share its client (QdrantStore(store.client, collection)), or run a Qdrant server"
    )


@contextmanager
def size_warning_silenced() -> Iterator[None]:
    """No warning that more than 20 000 points are many for local mode: the documentation says when
    to move to a server, and the warning cannot be answered from here. All others stay."""
    # catch_warnings changes the filters of the whole process: one thread at a time.
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Local mode is not recommended")
        yield
