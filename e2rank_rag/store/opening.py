"""Opens Qdrant by location: in memory, a folder, or a server's URL."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qdrant_client import QdrantClient

from e2rank_rag.errors import StoreError
from e2rank_rag.locks import Lock
from e2rank_rag.remote import check_timeout
from e2rank_rag.store.closing import close_at_exit
from e2rank_rag.store.folder_pickles import check_folder
from e2rank_rag.store.folder_record import check_complete
from e2rank_rag.store.server import server_client

MEMORY = ":memory:"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
SERVER = re.compile(r"https?://[^/]", re.IGNORECASE)
NO_FOLDER = re.compile(
    r"\s*([a-z][a-z0-9+.-]+:/|https?:|https?//|(//)?[\w.@\[\]:-]+:\d+\s*(/|$)|:memory:\s*$)",
    re.IGNORECASE,
)
"""An address without its scheme, or with a wrong one: `localhost:6333`, `htp://x`, `http:/x`; or
":memory:" written another way."""

LOCK_FILE = ".lock"

_warnings_lock = Lock()
_opening = Lock()


@dataclass(eq=False)
class _Folder:
    """Shared by the clients of one folder. users: the ids of the open clients."""

    backend: Any
    process: int = field(default_factory=os.getpid)
    users: set[int] = field(default_factory=set)

    def is_at(self, folder: Path) -> bool:
        """False if the folder was deleted or moved, and in a forked child, which has a copy."""
        with suppress(OSError):
            ours, theirs = os.fstat(self.backend._flock_file.fileno()), os.stat(folder / LOCK_FILE)
            return (
                self.process == os.getpid()
                and os.path.samestat(ours, theirs)
                and os.path.samefile(self.backend.location, folder)
            )
        return False


_folders: list[_Folder] = []


class FolderClient(QdrantClient):
    """A client of a folder. Qdrant can open a folder once, so the clients of a process share what
    the first one has read, and the last one to close closes it."""

    def __init__(self, folder: Path) -> None:
        with _opening:
            shared = next((each for each in list(_folders) if each.is_at(folder)), None)
            if shared is not None:
                shared.users.add(id(self))
            if shared is None or shared not in _folders:  # its last client may just be collected
                shared = self._read(folder)
                shared.users.add(id(self))
            else:
                super().__init__(path=None, location=MEMORY)
                self._client = shared.backend
                self._init_options |= {"location": None, "path": str(folder)}
            self._shared: _Folder | None = shared
        close_at_exit(self)

    def _read(self, folder: Path) -> _Folder:
        _refuse_locked(folder)
        check_folder(folder)
        check_complete(folder)
        with size_warning_silenced():
            # One lock guards every call, so SQLite need not insist on its thread.
            super().__init__(path=str(folder), force_disable_check_same_thread=True)
        _folders.append(_Folder(self._client))
        return _folders[-1]

    def close(self, grpc_grace: float | None = None, **kwargs: Any) -> None:
        """Close this client of the folder; a second call does nothing."""
        with _opening:
            self._leave()

    def __del__(self) -> None:
        self._leave()  # without the lock, since this may happen at any time

    def _leave(self) -> None:
        shared = vars(self).get("_shared")
        if shared is None:  # closed before, or never opened
            return
        self._shared = None
        shared.users.discard(id(self))
        if not shared.users:
            _folders.remove(shared)
            if shared.process == os.getpid():  # a forked child would free the parent's lock
                shared.backend.close()


def open_client(
    location: str | Path, *, api_key: str | None, prefer_grpc: bool, timeout: float
) -> QdrantClient:
    """A client for `location`; ValueError for an invalid one, StoreError if it cannot be opened.

    A server is not contacted yet. A folder is read into memory completely, once for all clients of
    this process; StoreError if it holds a pickle that could run code.
    """
    place = str(location)
    kind = kind_of(location)
    if kind == "server":
        check_timeout(timeout, name="timeout")
        return server_client(
            {
                "url": place,
                "api_key": api_key,
                "prefer_grpc": prefer_grpc,
                # the only number that threading accepts
                "timeout": timeout if isinstance(timeout, int) else float(timeout),
            }
        )
    if api_key is not None:
        raise ValueError(f"api_key is for servers, and {place!r} is none")
    if kind == "memory":
        return QdrantClient(location=MEMORY)
    return _open_folder(Path(place).expanduser())


def kind_of(location: str | Path) -> Literal["server", "memory", "folder"]:
    """The kind of a location; ValueError if it is empty or looks like a wrong address.

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
        return FolderClient(folder)
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
    """StoreError if the folder is locked. The client itself checks it after reading all points."""
    if folder.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "a file, not a folder", str(folder))
    # portalocker looks for a writable directory when it is imported, so not at the top.
    import portalocker

    lock_file = folder / LOCK_FILE
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
        f"{folder} is open already, in another process or through another library's client: close "
        f"that, share the client (QdrantStore(client, collection)), or run a Qdrant server"
    )


@contextmanager
def size_warning_silenced() -> Iterator[None]:
    """Silence the warning that more than 20 000 points are many for local mode. The documentation
    says when to move to a server. Other warnings stay."""
    # catch_warnings changes the filters of the whole process, so one thread at a time.
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Local mode is not recommended")
        yield
