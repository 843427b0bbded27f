"""A Qdrant collection with the embeddings that write and search it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

from e2rank_rag import types
from e2rank_rag.indexing import probe_foreign
from e2rank_rag.locks import Kept
from e2rank_rag.pipeline import SearchPipeline, check_hybrid
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.vectors import StoredVectors
from langchain_e2rank.embeddings import E2RankEmbeddings

logger = logging.getLogger(__name__)

Conditions = types.Filter | Any | None
"""Conditions on metadata (see `e2rank_rag.types.Filter`), or a qdrant_client.models.Filter."""


class Collection:
    """Takes any embeddings. Only E2RankEmbeddings name their model, so only their vectors are
    recorded in the collection and checked against its record.

    A missing collection is an empty one.
    """

    def __init__(
        self, store: QdrantStore, embedding: Embeddings, stored_vectors: StoredVectors
    ) -> None:
        self.store = store
        self.embedding = embedding
        self.stored_vectors = stored_vectors
        self._pipeline: Kept[SearchPipeline] = Kept()

    @property
    def exists(self) -> bool:
        """Whether Qdrant has the collection. If not, a warning is logged."""
        exists = self.store.exists
        if not exists:
            logger.warning("%s does not exist: a search returns nothing", self.store.name)
        return exists

    async def aexists(self) -> bool:
        return await asyncio.to_thread(lambda: self.exists)

    def write(self, documents: Sequence[types.Document]) -> None:
        """Embed documents and write them. A document replaces the one with the same id."""
        texts = [document.text for document in documents]
        if isinstance(self.embedding, E2RankEmbeddings):
            vectors = self.embedding.encoder.encode_documents(texts)
        else:
            vectors = _array(self.embedding.embed_documents(texts))
        self._prepare(vectors)
        self.store.upsert(documents, vectors)

    async def awrite(self, documents: Sequence[types.Document]) -> None:
        texts = [document.text for document in documents]
        if isinstance(self.embedding, E2RankEmbeddings):
            vectors = await (await self.embedding.aencoder()).aencode_documents(texts)
        else:
            vectors = _array(await self.embedding.aembed_documents(texts))
        await asyncio.to_thread(self._prepare, vectors)
        await self.store.aupsert(documents, vectors)

    def search(
        self, query: str, k: int, filter: Conditions, hybrid: types.Hybrid = False
    ) -> list[types.Hit]:
        """The k nearest documents to a query; with `hybrid` the k best by its words too."""
        check_hybrid(hybrid)
        if not self.exists:
            return []
        if not isinstance(self.embedding, E2RankEmbeddings):
            vector = _array(self.embedding.embed_query(query))
            words = _words(query, hybrid)
            return self.store.search_batch(vector[None], top_k=k, filter=filter, **words)[0]
        searcher = self._searcher(self.embedding.encoder)
        return searcher.search(query, top_k=k, filter=filter, hybrid=hybrid)

    async def asearch(
        self, query: str, k: int, filter: Conditions, hybrid: types.Hybrid = False
    ) -> list[types.Hit]:
        check_hybrid(hybrid)
        if not await self.aexists():
            return []
        if not isinstance(self.embedding, E2RankEmbeddings):
            vector = _array(await self.embedding.aembed_query(query))
            words = _words(query, hybrid)
            found = await self.store.asearch_batch(vector[None], top_k=k, filter=filter, **words)
            return found[0]
        searcher = self._searcher(await self.embedding.aencoder())
        return await searcher.asearch(query, top_k=k, filter=filter, hybrid=hybrid)

    def nearest(self, vector: Sequence[float], k: int, filter: Conditions) -> list[types.Hit]:
        """The k nearest documents to a vector, shape [dim]."""
        return self.store.search(_array(vector), top_k=k, filter=filter) if self.exists else []

    async def anearest(
        self, vector: Sequence[float], k: int, filter: Conditions
    ) -> list[types.Hit]:
        if not await self.aexists():
            return []
        return await self.store.asearch(_array(vector), top_k=k, filter=filter)

    def _searcher(self, encoder: types.TextEncoder) -> SearchPipeline:
        """One pipeline for as long as its parts stay, since it remembers its probes."""
        store, policy = self.store, self.stored_vectors
        return self._pipeline.get(
            (encoder, store, policy), lambda: SearchPipeline(encoder, store, stored_vectors=policy)
        )

    def _prepare(self, vectors: types.Embeddings) -> None:
        """Create the collection, or check that these vectors belong in it."""
        store, embedding = self.store, self.embedding
        if not isinstance(embedding, E2RankEmbeddings):
            store.prepare(vectors.shape[1])
            return
        encoder = embedding.encoder
        store.prepare(vectors.shape[1], fingerprint=encoder.fingerprint, model=encoder.name)
        if self.stored_vectors == "check":
            probe_foreign(encoder, store)


def _array(numbers: Sequence[float] | Sequence[Sequence[float]]) -> types.Embeddings:
    return np.asarray(numbers, dtype=np.float32)


def _words(query: str, hybrid: types.Hybrid) -> dict[str, Any]:
    """The store's options for a hybrid search; none for a search by vector alone."""
    if hybrid is False:
        return {}
    return {"queries": [query], "fusion": "rrf" if hybrid is True else hybrid}
