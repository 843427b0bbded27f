"""Allows one call at a time on a local client, from this library and from others.

Local mode is Python code over lists and one SQLite connection. Haystack's and LangChain's stores
may write through the same client from their own threads. So the lock is in the object that the
client delegates to, and guards their calls too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from qdrant_client import QdrantClient
from qdrant_client.local.qdrant_local import QdrantLocal

from e2rank_rag.locks import Lock
from e2rank_rag.store.closing import close_at_exit

_locks: WeakKeyDictionary[QdrantLocal, Any] = WeakKeyDictionary()
_registry_lock = Lock()


class GuardedLocal(QdrantLocal):
    """Every public method holds the lock of its backend. (A copy has a lock of its own.)"""


def guard(client: QdrantClient) -> Any:
    """Guard a local client, and return its re-entrant lock. Safe to call twice."""
    backend: Any = client._client
    if type(backend) is QdrantLocal:
        with _lock_of(backend):
            backend.__class__ = GuardedLocal
        close_at_exit(client)
    return _lock_of(backend)


def _lock_of(backend: Any) -> Any:
    with _registry_lock:
        return _locks.setdefault(backend, Lock())


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def alone(self: QdrantLocal, *args: Any, **kwargs: Any) -> Any:
        with _lock_of(self):
            return method(self, *args, **kwargs)

    return alone


for _name, _method in vars(QdrantLocal).items():
    if not _name.startswith("_") and callable(_method):
        setattr(GuardedLocal, _name, _guarded(_method))
