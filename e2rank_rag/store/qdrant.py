"""QdrantStore: documents with one vector each in Qdrant, in memory, in a folder or on a server.

    store = QdrantStore.open("./index", "news")
    store.prepare(encoder.dim, fingerprint=encoder.fingerprint, model="all-MiniLM-L6-v2")
    store.upsert(documents, encoder.encode_documents([d.text for d in documents]))
    hits = store.search(encoder.encode_queries(["storm in the north"])[0], top_k=10)

qdrant-haystack reads, overwrites and deletes the same points; langchain-qdrant reads them.
Local mode is Python code that reads every point; use it for up to about 20,000 documents.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qdrant_client import AsyncQdrantClient, QdrantClient, models

from e2rank_rag.errors import CollectionMissing, StoreError
from e2rank_rag.store.answers import Points, Request
from e2rank_rag.store.connection import Connection
from e2rank_rag.store.folder_record import refuse_left_over
from e2rank_rag.store.layout import Layout
from e2rank_rag.store.opening import open_client
from e2rank_rag.store.requests import CollectionRequests
from e2rank_rag.store.schema import KnownSchema, Schema
from e2rank_rag.store.vectors import one_row
from e2rank_rag.types import Document, Embeddings, Filter, Hit, Store, StoredDocument

logger = logging.getLogger(__name__)

R = TypeVar("R")

DEFAULT_LAYOUT = Layout()
DEFAULT_TIMEOUT_S = 30
SET_BY_PREPARE = ("collection_name", "vectors_config", "metadata")


class QdrantStore:
    """A collection of a Qdrant client, as `e2rank_rag.types.Store`.

    client: an open client, which is not closed with the store; or the arguments of a QdrantClient,
        which is then opened at first use and closed with the store.
    async_client: on the same server, for the async methods; without it they run in a thread.
    layout: where a point keeps id, text and meta.
    vector_name: the name of the vector, in a collection whose vectors have names.
    collection_options: arguments of QdrantClient.create_collection for a new collection, such as
        hnsw_config, quantization_config, shard_number.

    In local mode a copy shares the client; on a server it opens its own. Closing one leaves the
    other open. A pickle opens folder or server again at first use, and holds the API key. A store
    in memory cannot be pickled, nor one whose `async_client` has other settings.

    Scores are cosines. (A collection with the distance Dot chooses its `top_k` by dot products,
    which are the same if the stored vectors have unit length.)
    """

    def __init__(
        self,
        client: QdrantClient | Mapping[str, Any],
        collection: str,
        *,
        layout: Layout = DEFAULT_LAYOUT,
        vector_name: str | None = None,
        async_client: AsyncQdrantClient | None = None,
        collection_options: Mapping[str, Any] | None = None,
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
        self._known = KnownSchema()
        self._told_of_kept = False
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
    ) -> QdrantStore:
        """A store in memory, in a folder or on a server, which is contacted at first use.

        location: ":memory:", a folder, or the URL of a server.
        timeout: seconds for one request to a server, with its retries and their waits.
        layout, vector_name, collection_options: see `QdrantStore`.

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
        )
        store._connect(Connection(client, owned=True))
        return store

    def with_layout(self, layout: Layout) -> QdrantStore:
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

    def prepare(
        self, dim: int, *, fingerprint: str | None = None, model: str | None = None
    ) -> None:
        """Create the collection, or check that the existing one can take these vectors.

        The fingerprint is recorded in a new or empty collection; a filled collection without a
        record stays without one. StoreError for another dimension or kind of vector,
        StoredVectorMismatch for another fingerprint.
        """
        if dim < 1:
            raise ValueError(f"dim must be > 0, got {dim}")
        if not self._is_there():
            if (folder := self._connection.options.get("path")) is not None:
                refuse_left_over(Path(folder), self.collection)
            record = Schema(dim).with_record(fingerprint, model)
            self._create(dim, record if fingerprint is not None else None)
        schema = self._connection.send(self._requests.schema())
        schema.check_dim(dim, self.name)
        schema.check_fingerprint(fingerprint, model, self.name)
        if fingerprint is not None and schema.fingerprint is None and self.count() == 0:
            self._connection.send(self._requests.record(schema.with_record(fingerprint, model)))
            schema = self._connection.send(self._requests.schema())
        self._known.agree(fingerprint, schema)

    def check(self, documents: Sequence[Document]) -> None:
        """Raise the ValueErrors of `upsert`, for documents to be written in several calls."""
        self._requests.check(documents)

    def upsert(self, documents: Sequence[Document], embeddings: Embeddings) -> None:
        """Write documents with their vectors [n, dim], in place of documents with the same ids.

        A replaced document keeps its other vectors, and its payload under other keys.

        Raises before anything is written: ValueError, naming the document, for a repeated id, a
        text or meta that JSON cannot hold, and a vector that is not finite or zero;
        StoredVectorMismatch if the collection has another model's record since `prepare`.
        """
        if len(documents) or len(embeddings):
            schema = self._as_agreed(self._connection.send(self._requests.schema()))
            points = self._requests.points(documents, embeddings, schema)
            kept = self._send_all(self._requests.kept(points, schema))
            self._tell_of_kept(kept, schema)
            self._send_all(self._requests.upsert(points, kept))

    def update_meta(self, documents: Sequence[Document]) -> None:
        """Replace the meta of stored documents; text and vector do not change.

        StoreError, naming missing documents, before anything is written.
        """
        updates = self._requests.update_meta(documents)
        lookups = self._requests.retrieve([d.id for d in documents], payload=False)
        self._requests.refuse_absent(documents, self._send_all(lookups))
        self._send_all(updates)

    def search(
        self, embedding: Embeddings, *, top_k: int, filter: Filter | models.Filter | None = None
    ) -> list[Hit]:
        """The `top_k` nearest documents to a vector [dim], with their vectors, best first."""
        return self.search_batch(one_row(embedding), top_k=top_k, filter=filter)[0]

    def search_batch(
        self, embeddings: Embeddings, *, top_k: int, filter: Filter | models.Filter | None = None
    ) -> list[list[Hit]]:
        """`search` for every row of [n, dim]: one request, or a few if the answers are large."""
        schema = self._known_schema()
        requests = self._requests.search(embeddings, top_k=top_k, filter=filter, schema=schema)
        return [hits for rankings in self._send_all(requests) for hits in rankings]

    def rescore(self, embedding: Embeddings, ids: Sequence[str]) -> list[Hit]:
        """These documents with cosines to a vector [dim], best first; unknown ids are left out.

        One request that transfers no vectors: `Hit.embedding` is None.
        """
        if not len(ids):
            return []
        requests = self._requests.rescore(embedding, ids, self._known_schema())
        return _best_first(self._send_all(requests))

    def get(
        self, ids: Sequence[str], *, with_embeddings: bool = False
    ) -> dict[str, StoredDocument]:
        """The documents with these ids, in this order; unknown ids are left out."""
        schema = self._known_schema() if with_embeddings and len(ids) else None
        answers = self._send_all(self._requests.retrieve(ids, vectors=with_embeddings))
        return self._requests.stored(ids, answers, schema)

    def ids(self) -> Iterator[str]:
        """All document ids, read page by page, in no particular order."""
        offset: Any = None
        while True:
            page, offset = self._connection.send(self._requests.scroll(offset))
            yield from page
            if offset is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; unknown ids are no error."""
        self._send_all(self._requests.delete(ids))

    def count(self, filter: Filter | models.Filter | None = None) -> int:
        """The exact number of documents."""
        return self._connection.send(self._requests.count(filter))

    def close(self) -> None:
        """Close the client if this store opened it; a second call does nothing."""
        self._connection.close()

    async def aprepare(
        self, dim: int, *, fingerprint: str | None = None, model: str | None = None
    ) -> None:
        """`prepare` in a thread."""
        await asyncio.to_thread(self.prepare, dim, fingerprint=fingerprint, model=model)

    async def aupsert(self, documents: Sequence[Document], embeddings: Embeddings) -> None:
        """`upsert` without blocking the event loop."""
        if len(documents) or len(embeddings):
            schema = self._as_agreed(await self._connection.asend(self._requests.schema()))
            # Checking and converting a large batch takes longer than an event loop should wait.
            points = await asyncio.to_thread(self._requests.points, documents, embeddings, schema)
            kept = await self._asend_all(self._requests.kept(points, schema))
            self._tell_of_kept(kept, schema)
            await self._asend_all(await asyncio.to_thread(self._requests.upsert, points, kept))

    async def aupdate_meta(self, documents: Sequence[Document]) -> None:
        updates = self._requests.update_meta(documents)
        lookups = self._requests.retrieve([d.id for d in documents], payload=False)
        self._requests.refuse_absent(documents, await self._asend_all(lookups))
        await self._asend_all(updates)

    async def asearch(
        self, embedding: Embeddings, *, top_k: int, filter: Filter | models.Filter | None = None
    ) -> list[Hit]:
        return (await self.asearch_batch(one_row(embedding), top_k=top_k, filter=filter))[0]

    async def asearch_batch(
        self, embeddings: Embeddings, *, top_k: int, filter: Filter | models.Filter | None = None
    ) -> list[list[Hit]]:
        schema = await self._aknown_schema()
        requests = self._requests.search(embeddings, top_k=top_k, filter=filter, schema=schema)
        return [hits for rankings in await self._asend_all(requests) for hits in rankings]

    async def arescore(self, embedding: Embeddings, ids: Sequence[str]) -> list[Hit]:
        if not len(ids):
            return []
        schema = await self._aknown_schema()
        return _best_first(await self._asend_all(self._requests.rescore(embedding, ids, schema)))

    async def aget(
        self, ids: Sequence[str], *, with_embeddings: bool = False
    ) -> dict[str, StoredDocument]:
        schema = await self._aknown_schema() if with_embeddings and len(ids) else None
        answers = await self._asend_all(self._requests.retrieve(ids, vectors=with_embeddings))
        return self._requests.stored(ids, answers, schema)

    async def adelete(self, ids: Sequence[str]) -> None:
        await self._asend_all(self._requests.delete(ids))

    async def acount(self, filter: Filter | models.Filter | None = None) -> int:
        return await self._connection.asend(self._requests.count(filter))

    async def aclose(self) -> None:
        """`close`, also for the async client of the running event loop."""
        await self._connection.aclose()

    def __copy__(self) -> QdrantStore:
        return copy.deepcopy(self)

    def _connect(self, connection: Connection) -> None:
        self._connection = connection
        self._requests = CollectionRequests(
            collection=self.collection,
            name=self.name,
            layout=self.layout,
            vector_name=self.vector_name,
            exact=not connection.local,
        )

    def _create(self, dim: int, metadata: Mapping[str, Any] | None) -> None:
        try:
            self._connection.send(self._requests.create(dim, metadata, self.collection_options))
        except StoreError:
            # Another process was faster, or the first try of a repeated request had succeeded.
            if not self._is_there():
                raise

    def _is_there(self) -> bool:
        return self._connection.send(self._requests.exists())

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

    def _tell_of_kept(self, kept: Sequence[Points], schema: Schema) -> None:
        if self._told_of_kept or not any(point.vector for points in kept for point in points):
            return
        self._told_of_kept = True
        logger.warning(
            "%s: documents that are written again keep their other vectors %s, which were made "
            "from their text before: write these again too if the text has changed",
            self.name,
            list(schema.other_vectors),
        )

    def _send_all(self, requests: Sequence[Request[R]]) -> list[R]:
        return [self._connection.send(request) for request in requests]

    async def _asend_all(self, requests: Sequence[Request[R]]) -> list[R]:
        return [await self._connection.asend(request) for request in requests]


def _best_first(rankings: Sequence[list[Hit]]) -> list[Hit]:
    return sorted(chain.from_iterable(rankings), key=lambda hit: -hit.score)


if TYPE_CHECKING:
    _fits: type[Store] = QdrantStore
