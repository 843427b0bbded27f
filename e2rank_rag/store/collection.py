"""One collection of a Qdrant client: its place, its schema, and preparing it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from qdrant_client import AsyncQdrantClient, QdrantClient, models

from e2rank_rag.errors import CollectionMissing, StoreError
from e2rank_rag.store.answers import Request
from e2rank_rag.store.connection import Connection
from e2rank_rag.store.folder_record import refuse_left_over
from e2rank_rag.store.layout import Layout
from e2rank_rag.store.opening import open_client
from e2rank_rag.store.schema import KnownSchema, Schema
from e2rank_rag.store.searches import SearchRequests
from e2rank_rag.store.sparse import SparseWords
from e2rank_rag.words import Bm25

R = TypeVar("R")

DEFAULT_LAYOUT = Layout()
DEFAULT_TIMEOUT_S = 30
BM25_NAME = "bm25"
SET_BY_PREPARE = ("collection_name", "vectors_config", "metadata")


class Collection:
    """See `e2rank_rag.QdrantStore`, which adds the documents."""

    def __init__(
        self,
        client: QdrantClient | Mapping[str, Any],
        collection: str,
        *,
        layout: Layout = DEFAULT_LAYOUT,
        vector_name: str | None = None,
        async_client: AsyncQdrantClient | None = None,
        collection_options: Mapping[str, Any] | None = None,
        bm25: Bm25 | None = None,
        bm25_name: str = BM25_NAME,
    ) -> None:
        if not collection:
            raise ValueError("collection must have a name, got an empty one")
        options = dict(collection_options or {})
        if taken := [key for key in SET_BY_PREPARE if key in options]:
            raise ValueError(f"collection_options may not hold {taken}: prepare() sets them")
        self.collection = collection
        self.layout = layout
        self.vector_name = vector_name
        self.collection_options = options
        if not bm25_name:
            raise ValueError("bm25_name must be the name of a sparse vector, got an empty one")
        self.words = None if bm25 is None else SparseWords(bm25, bm25_name)
        self._known = KnownSchema()
        self._told_of_kept = self._told_of_unspaced = False
        self._connect(Connection(client, async_client=async_client))

    @classmethod
    def open(
        cls,
        location: str | Path,
        collection: str,
        *,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
        layout: Layout = DEFAULT_LAYOUT,
        vector_name: str | None = None,
        collection_options: Mapping[str, Any] | None = None,
        bm25: Bm25 | None = None,
        bm25_name: str = BM25_NAME,
    ) -> Self:
        """A store in memory, in a folder or on a server, which is contacted at first use.

        location: ":memory:", a folder, or the URL of a server.
        timeout: seconds for one request to a server, with its retries and their waits.
        layout, vector_name, collection_options, bm25, bm25_name: see `QdrantStore`.

        StoreError if the folder is locked, read-only or not a folder, or holds a pickle that Qdrant
        did not write and that could run code.
        """
        client = open_client(location, api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
        store = cls(
            client,
            collection,
            layout=layout,
            vector_name=vector_name,
            collection_options=collection_options,
            bm25=bm25,
            bm25_name=bm25_name,
        )
        store._connect(Connection(client, owned=True))
        return store

    def with_layout(self, layout: Layout) -> Self:
        """This store with another layout; closing one closes both."""
        store = object.__new__(type(self))
        vars(store).update(vars(self), layout=layout)
        store._connect(self._connection)
        return store

    @property
    def client(self) -> QdrantClient:
        """The client, to share with other stores and tools."""
        return self._connection.client

    @property
    def settings(self) -> Mapping[str, Any]:
        """The arguments of its QdrantClient, the API key included."""
        return self._connection.options

    @property
    def async_settings(self) -> list[str]:
        """Names of the settings in which a given `async_client` differs from the client."""
        return self._connection.async_settings

    @property
    def name(self) -> str:
        """Collection and place, such as `collection 'news' at http://localhost:6333`."""
        return f"collection {self.collection!r} {self._connection.where}"

    @property
    def exists(self) -> bool:
        """Whether the collection exists; on a server the answer is up to `SCHEMA_AGE_S` s old."""
        return self._fresh_schema() is not None or self._is_there()

    @property
    def dim(self) -> int:
        """The dimension of the vectors; CollectionMissing (a StoreError) without a collection."""
        return self._known_schema().dim

    @property
    def fingerprint(self) -> str | None:
        """The recorded fingerprint, up to `SCHEMA_AGE_S` seconds old; None without a record."""
        schema = self._schema_if_there()
        return None if schema is None else schema.fingerprint

    @property
    def model(self) -> str | None:
        """Name of the model that wrote the vectors; None if it was not recorded."""
        schema = self._schema_if_there()
        return None if schema is None else schema.model

    @property
    def bm25(self) -> Bm25 | None:
        """What turns texts into the sparse vectors here, as given or recorded; None without."""
        words = self._words_there()
        return None if words is None else words.bm25

    @property
    def hybrid(self) -> bool:
        """Whether `search_batch` takes `queries`; StoreError if `bm25` does not fit."""
        return self._words_there() is not None

    def prepare(
        self, dim: int, *, fingerprint: str | None = None, model: str | None = None
    ) -> None:
        """Create the collection, or check that the existing one can take these vectors.

        The fingerprint is recorded in a new or empty collection, `bm25` where no document has the
        sparse vector yet; otherwise a collection without a record stays without one. StoreError for
        another dimension or kind of vector, and for a collection without the sparse vector of
        `bm25`; StoredVectorMismatch for another fingerprint or Bm25.
        """
        if dim < 1:
            raise ValueError(f"dim must be > 0, got {dim}")
        if not self._is_there():
            if (folder := self._connection.options.get("path")) is not None:
                refuse_left_over(Path(folder), self.collection)
            new = Schema(dim, words=self.words).with_record(fingerprint, model)
            recorded = fingerprint is not None or self.words is not None
            self._create(dim, new if recorded else None)
        schema = self._connection.send(self._requests.schema())
        schema.check_dim(dim, self.name)
        schema.check_fingerprint(fingerprint, model, self.name)
        self._known.agree(fingerprint, self._recorded(schema, fingerprint, model))

    def add_words(self) -> None:
        """Give an existing collection the sparse vector of `bm25`; does nothing if it is there.

        It is empty: index the documents again, which writes their words and encodes nothing. Needs
        Qdrant 1.18 or newer. ValueError for a store without `bm25`.
        """
        if self.words is None:
            raise ValueError(f"{self.name}: open the store with bm25=Bm25(...) to add words")
        if self._has_sparse(self.words.vector_name):
            return
        try:
            self._connection.send(self._requests.add_words())
        except StoreError:
            # Another process was faster, or the first try of a repeated request had succeeded.
            if not self._has_sparse(self.words.vector_name):
                raise

    def close(self) -> None:
        """Close the client if this store opened it; a second call does nothing."""
        self._connection.close()

    async def aprepare(
        self, dim: int, *, fingerprint: str | None = None, model: str | None = None
    ) -> None:
        """`prepare` in a thread."""
        await asyncio.to_thread(self.prepare, dim, fingerprint=fingerprint, model=model)

    async def aclose(self) -> None:
        """`close`, also for the async client of the running event loop."""
        await self._connection.aclose()

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def _connect(self, connection: Connection) -> None:
        self._connection = connection
        self._requests = SearchRequests(
            collection=self.collection,
            name=self.name,
            layout=self.layout,
            vector_name=self.vector_name,
            exact=not connection.local,
            words=self.words,
        )

    def _create(self, dim: int, metadata: Mapping[str, Any] | None) -> None:
        try:
            self._connection.send(self._requests.create(dim, metadata, self.collection_options))
        except StoreError:
            # Another process was faster, or the first try of a repeated request had succeeded.
            if not self._is_there():
                raise

    def _has_sparse(self, name: str) -> bool:
        return name in self._connection.send(self._requests.sparse_names())

    def _is_there(self) -> bool:
        return self._connection.send(self._requests.exists())

    def _recorded(self, schema: Schema, fingerprint: str | None, model: str | None) -> Schema:
        """The schema, after recording what no stored document can belie."""
        words = schema.words
        new_model = fingerprint is not None and schema.fingerprint is None and self._none(None)
        new_words = words is not None and not schema.words_recorded and self._none(words.filter)
        if not new_model and not new_words:
            return schema
        record = schema.with_record(*(fingerprint, model) if new_model else (None, None))
        self._connection.send(self._requests.record(record))
        return self._connection.send(self._requests.schema())

    def _none(self, filter: models.Filter | None) -> bool:
        return self._connection.send(self._requests.count(filter)) == 0

    def _words_there(self) -> SparseWords | None:
        """The sparse vector of words; for a collection that is not there yet, as given."""
        schema = self._schema_if_there()
        return self.words if schema is None else schema.words

    def _known_schema(self) -> Schema:
        request, fresh = self._requests.schema(), self._fresh_schema()
        return fresh or self._known.remember(self._connection.send(request))

    async def _aknown_schema(self) -> Schema:
        request, fresh = self._requests.schema(), self._fresh_schema()
        return fresh or self._known.remember(await self._connection.asend(request))

    def _schema_if_there(self) -> Schema | None:
        try:
            return self._known_schema()
        except CollectionMissing:
            return None

    def _fresh_schema(self) -> Schema | None:
        return None if self._connection.local else self._known.fresh()

    def _as_agreed(self, schema: Schema) -> Schema:
        return self._known.as_agreed(schema, self.name)

    def _send_all(self, requests: Sequence[Request[R]]) -> list[R]:
        return [self._connection.send(request) for request in requests]

    async def _asend_all(self, requests: Sequence[Request[R]]) -> list[R]:
        return [await self._connection.asend(request) for request in requests]
