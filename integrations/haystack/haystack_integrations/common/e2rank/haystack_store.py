"""Reads a QdrantDocumentStore without its own code for opening it.

That code creates a missing collection, drops an existing one (`recreate_index`), and keeps a second
store for asynchronous calls.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from haystack_integrations.common.e2rank.documents import (
    DENSE_VECTORS_NAME,
    SPARSE_VECTORS_NAME,
    DocumentText,
    HaystackLayout,
)
from qdrant_client import QdrantClient, models
from qdrant_client.local.qdrant_local import META_INFO_FILENAME

from e2rank_rag.errors import StoreError
from e2rank_rag.locks import Lock
from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.store.connection import is_local
from e2rank_rag.store.opening import open_client
from e2rank_rag.words import Bm25

if TYPE_CHECKING:
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
    from qdrant_client import AsyncQdrantClient


class HaystackStore:
    """The reader of a QdrantDocumentStore.

    In local mode it shares the document store's client, because no second client could see the
    same documents. The document store's asynchronous methods then use that client too. A server is
    read through a client of its own.

    bm25: what its sparse vectors hold; None: nobody knows, unless the collection's record says so.
    """

    def __init__(
        self, given: QdrantDocumentStore, document_text: DocumentText, bm25: Bm25 | None = None
    ) -> None:
        self._given = given
        self._document_text = document_text
        self._bm25 = bm25
        self._lock = _lock_of(given)
        self._made_of: tuple[Any, ...] = ()
        self._store: QdrantStore | None = None

    def open(self) -> QdrantStore:
        """The same store until the document store has another client or index.

        StoreError where a folder, or the collection in it, is missing, or another process has it
        open. On a server the first search finds out.
        """
        given = self._given
        with self._lock:
            if self._store is not None and self._made_of == self._key() and not _apart(given):
                return self._store
            settings = _settings(given)
            if is_local(settings):
                self._share_local()
                self._store = self._over(given._client)
            elif self._store is None or self._made_of[1:] != self._key()[1:]:
                self._store = self._over(settings)
            self._made_of = self._key()
            return self._store

    def close(self) -> None:
        """Close the client; one in memory stays open, because its documents would be lost."""
        given = self._given
        with self._lock:
            store, self._store = self._store, None
            if store is not None and not is_local(store.settings):
                store.close()
            elif given._client is not None and _is_folder(given):
                given.close()
                _keep_documents(given)

    async def aclose(self) -> None:
        """`close`, and with it the asynchronous client of the running event loop."""
        given, store = self._given, self._store
        if store is not None and not is_local(store.settings):
            await store.aclose()
        await asyncio.to_thread(self.close)
        # A `SharedClient` stays, so that documents that are written next are read too.
        if _apart(given) and _is_folder(given):
            await given.close_async()
            _keep_documents(given)

    def _key(self) -> tuple[Any, ...]:
        return (self._given._client, self._given.index, self._given.use_sparse_embeddings)

    def _share_local(self) -> None:
        given = self._given
        if _apart(given):
            _adopt(given, given._async_client)
        elif given._client is None:
            self._open_local()
        if not isinstance(given._async_client, SharedClient):
            given._async_client = SharedClient(given)

    def _open_local(self) -> None:
        path = _settings(self._given).get("path")
        if path is None:
            # Its own opening is safe here: nobody else can have written to this memory.
            self._given._initialize_client()
            return
        path = os.path.abspath(path)
        check_folder(path)
        client = open_client(path, api_key=None, prefer_grpc=False, timeout=0)
        try:
            _ = self._over(client).dim
        except BaseException:
            client.close()
            raise
        self._given._client = client

    def _over(self, client: QdrantClient | dict[str, Any]) -> QdrantStore:
        name = DENSE_VECTORS_NAME if self._given.use_sparse_embeddings else None
        layout = HaystackLayout.over(Layout(), self._document_text, name)
        return QdrantStore(
            client,
            self._given.index,
            layout=layout,
            vector_name=name,
            bm25=self._bm25,
            bm25_name=SPARSE_VECTORS_NAME,
        )


class SharedClient:
    """A document store's synchronous client in the place of its asynchronous one.

    Calls run on the event loop, as AsyncQdrantLocal runs them.
    """

    def __init__(self, store: QdrantDocumentStore) -> None:
        # A weak reference: a folder's lock is freed when its store is collected.
        self._store = ref(store)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(*arguments: Any, **options: Any) -> Any:
            store = self._store()
            assert store is not None, "a document store outlives the calls that it makes"
            if store._client is None:
                _keep_documents(store)
                store._initialize_client()
            return getattr(store._client, name)(*arguments, **options)

        return call

    async def close(self, **_: Any) -> None:
        """Close the shared client, unless it is in memory."""
        store = self._store()
        if store is not None and store._client is not None and _is_folder(store):
            store.close()
            _keep_documents(store)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy or pickle of the store opens its own clients


def check_folder(path: str | Path) -> None:
    """StoreError, before Qdrant makes a folder of a path that was mistyped."""
    if not (Path(path).expanduser() / META_INFO_FILENAME).is_file():
        raise StoreError(f"there is no Qdrant folder at {path}: index documents first")


# Components that share a document store open it one at a time: a folder can be open only once.
_locks: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
_locks_lock = Lock()


def _lock_of(given: QdrantDocumentStore) -> Lock:
    with _locks_lock:
        return _locks.setdefault(given, Lock())


def _settings(given: QdrantDocumentStore) -> dict[str, Any]:
    """The settings of its client, open or not."""
    if given._client is not None:
        return dict(given._client.init_options)
    if given._async_client is not None and _apart(given):
        return dict(given._async_client._init_options)
    return dict(given._prepare_client_params())


def _apart(given: QdrantDocumentStore) -> bool:
    """Whether its asynchronous methods use a client with its own connections or documents."""
    return given._async_client is not None and not isinstance(given._async_client, SharedClient)


def _is_folder(given: QdrantDocumentStore) -> bool:
    return _settings(given).get("path") is not None


def _adopt(given: QdrantDocumentStore, written: AsyncQdrantClient) -> None:
    """Give the synchronous client the documents of the asynchronous one."""
    backend: Any = written._client
    if given._client is None:
        client = QdrantClient(":memory:")
        # Both backends hold the same kind of collection in the same attributes.
        vars(client._client).update(vars(backend))
        client._init_options = dict(written._init_options)
        given._client = client
        return
    # A folder can be open only once, so both clients are in memory.
    for name, collection in backend.collections.items():
        _merge(given._client, name, collection)


def _merge(client: QdrantClient, name: str, collection: Any) -> None:
    backend: Any = client._client
    mine = backend.collections.setdefault(name, collection)
    if mine is collection or not collection.ids:
        return
    records, _ = collection.scroll(limit=len(collection.ids), with_vectors=True)
    ids = [record.id for record in records]
    held = {record.id: record for record in client.retrieve(name, ids, with_vectors=True)}
    for record in records:
        other = held.get(record.id, record)
        if (other.payload, other.vector) != (record.payload, record.vector):
            raise StoreError(
                f"document {(record.payload or {}).get('id')!r} was written differently by "
                f"write_documents and write_documents_async of one QdrantDocumentStore in memory: "
                f"it keeps the two apart, and the order is lost. Write with one of them only"
            )
    points: list[Any] = [
        models.PointStruct(id=record.id, vector=record.vector or {}, payload=record.payload)
        for record in records
    ]
    client.upsert(name, points)


def _keep_documents(given: QdrantDocumentStore) -> None:
    """Keep the collection when the store opens again by itself."""
    given.recreate_index = False
