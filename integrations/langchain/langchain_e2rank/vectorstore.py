"""E2RankVectorStore: documents and their vectors in Qdrant, as LangChain's VectorStore."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import SecretStr
from qdrant_client import QdrantClient

from e2rank_rag import types
from e2rank_rag.indexing import BATCH_DOCUMENTS
from e2rank_rag.store.opening import MEMORY
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.types import Hybrid
from e2rank_rag.vectors import StoredVectors
from langchain_e2rank._collection import Collection, Conditions
from langchain_e2rank._shared import as_document

Scored = list[tuple[Document, float]]


class E2RankVectorStore(VectorStore):
    """A Qdrant collection: in memory, in a folder, on a server, or in an open client.

    embedding: any LangChain embeddings. Only E2RankEmbeddings name their model, so only their
        vectors are recorded in the collection and checked against its record (`stored_vectors`).
    location: ":memory:", a folder, or a URL. client: a QdrantClient instead of a location.
    options: further arguments of `QdrantStore.open` (`bm25`, `bm25_name`, `layout`, `vector_name`,
        `prefer_grpc`, `timeout`, `collection_options`), or with a client of `QdrantStore`
        (`async_client`). With `bm25=Bm25(language=...)` a new collection holds the words of its
        documents beside their vectors, for hybrid search.

    A missing collection is empty; adding documents creates it. Every method has an async twin,
    with an `a` before its name, that does not block the event loop.
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        collection_name: str = "documents",
        location: str | Path = MEMORY,
        api_key: SecretStr | str | None = None,
        client: QdrantClient | None = None,
        stored_vectors: StoredVectors = "check",
        **options: Any,
    ) -> None:
        key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        if client is None:
            store = QdrantStore.open(location, collection_name, api_key=key, **options)
        elif location == MEMORY and key is None:
            store = QdrantStore(client, collection_name, **options)
        else:
            raise ValueError("give a client, or a location with its api_key, not both")
        self.collection = Collection(store, embedding, stored_vectors)

    @property
    def store(self) -> QdrantStore:
        """The collection as `e2rank_rag` reads and writes it."""
        return self.collection.store

    def __copy__(self) -> Self:
        """A copy is closed separately; see `QdrantStore`."""
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        old = self.collection
        copied.collection = Collection(copy.copy(old.store), old.embedding, old.stored_vectors)
        return copied

    @property
    def embeddings(self) -> Embeddings:
        """Embeds the texts and queries."""
        return self.collection.embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store with these texts. kwargs: arguments of the constructor."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        store = await asyncio.to_thread(cls, embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = BATCH_DOCUMENTS,
    ) -> list[str]:
        """Embed texts and write them, `batch_size` at a time; returns their ids.

        A text replaces the one with the same id. A text without an id gets a random one (uuid4).
        Raises ValueError, before anything is written, for a repeated id and for metadata that JSON
        cannot hold.
        """
        documents = _documents(texts, metadatas, ids)
        for batch in self._batches(documents, batch_size):
            self.collection.write(batch)
        return [document.id for document in documents]

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = BATCH_DOCUMENTS,
    ) -> list[str]:
        documents = _documents(texts, metadatas, ids)
        for batch in await asyncio.to_thread(self._batches, documents, batch_size):
            await self.collection.awrite(batch)
        return [document.id for document in documents]

    def delete(self, ids: list[str] | None = None) -> bool:
        """Remove documents; None removes all of them. An unknown id is no error."""
        if self.collection.exists:
            self.store.delete(list(self.store.ids()) if ids is None else ids)
        return True

    async def adelete(self, ids: list[str] | None = None) -> bool:
        if ids is None:
            return await asyncio.to_thread(self.delete)
        if await self.collection.aexists():
            await self.store.adelete(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in this order, without those that do not exist."""
        found = self.store.get(ids) if self.collection.exists else {}
        return [as_document(stored.document) for stored in found.values()]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        found = await self.store.aget(ids) if await self.collection.aexists() else {}
        return [as_document(stored.document) for stored in found.values()]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Conditions = None, hybrid: Hybrid = False
    ) -> list[Document]:
        """The k nearest documents, best first.

        hybrid: search by the query's words too. True or "rrf" fuses both rankings by ranks, "dbsf"
            by scores; StoreError if the collection holds no words. The methods with scores and
            `max_marginal_relevance_search` compare vectors only.
        """
        return _plain(self.collection.search(query, k, filter, hybrid))

    async def asimilarity_search(
        self, query: str, k: int = 4, *, filter: Conditions = None, hybrid: Hybrid = False
    ) -> list[Document]:
        return _plain(await self.collection.asearch(query, k, filter, hybrid))

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Conditions = None
    ) -> Scored:
        """The k nearest documents with their cosines: higher is better."""
        return _with_scores(self.collection.search(query, k, filter))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Conditions = None
    ) -> Scored:
        return _with_scores(await self.collection.asearch(query, k, filter))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Conditions = None
    ) -> list[Document]:
        """The k nearest documents to a vector, best first."""
        return _plain(self.collection.nearest(embedding, k, filter))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Conditions = None
    ) -> list[Document]:
        return _plain(await self.collection.anearest(embedding, k, filter))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Conditions = None,
    ) -> list[Document]:
        """k of the `fetch_k` nearest documents, each unlike those before it."""
        hits = self.collection.search(query, fetch_k, filter)
        return _diverse(self.embeddings.embed_query(query), hits, k, lambda_mult)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Conditions = None,
    ) -> list[Document]:
        hits = await self.collection.asearch(query, fetch_k, filter)
        return _diverse(await self.embeddings.aembed_query(query), hits, k, lambda_mult)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Conditions = None,
    ) -> list[Document]:
        """`max_marginal_relevance_search` with a vector instead of a query."""
        hits = self.collection.nearest(embedding, fetch_k, filter)
        return _diverse(embedding, hits, k, lambda_mult)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Conditions = None,
    ) -> list[Document]:
        hits = await self.collection.anearest(embedding, fetch_k, filter)
        return _diverse(embedding, hits, k, lambda_mult)

    def close(self) -> None:
        """Close the store, except a client that you passed. The embeddings stay open."""
        self.store.close()

    async def aclose(self) -> None:
        await self.store.aclose()

    def _batches(self, documents: list[types.Document], size: int) -> list[list[types.Document]]:
        if size < 1:
            raise ValueError(f"batch_size must be > 0, got {size}")
        self.store.check(documents)
        return [documents[start : start + size] for start in range(0, len(documents), size)]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _relevance


def _relevance(cosine: float) -> float:
    """0 for opposite, 0.5 for unrelated and 1 for equal vectors, as in langchain-qdrant."""
    return min(max((cosine + 1.0) / 2.0, 0.0), 1.0)


def _documents(
    texts: Iterable[str],
    metadatas: Sequence[dict[str, Any]] | None,
    ids: Sequence[str | None] | None,
) -> list[types.Document]:
    texts = list(texts)
    for name, given in (("metadatas", metadatas), ("ids", ids)):
        if given is not None and len(given) != len(texts):
            raise ValueError(f"{len(texts)} texts came with {len(given)} {name}")
    return [
        types.Document(id=id or str(uuid.uuid4()), text=text, meta=metadata or {})
        for text, metadata, id in zip(
            texts, metadatas or [{}] * len(texts), ids or [None] * len(texts), strict=True
        )
    ]


def _plain(hits: Sequence[types.Hit]) -> list[Document]:
    return [as_document(hit.document) for hit in hits]


def _with_scores(hits: Sequence[types.Hit]) -> Scored:
    return [(as_document(hit.document), hit.score) for hit in hits]


def _diverse(
    query: Sequence[float], hits: Sequence[types.Hit], k: int, lambda_mult: float
) -> list[Document]:
    # A stored vector that is zero or not finite comes as None.
    hits = [hit for hit in hits if hit.embedding is not None]
    vectors: list[Any] = [hit.embedding for hit in hits]
    chosen = maximal_marginal_relevance(np.asarray(query), vectors, lambda_mult, k)
    return [as_document(hits[place].document) for place in chosen]
