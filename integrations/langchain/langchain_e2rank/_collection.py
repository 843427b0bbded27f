"""A Qdrant collection with the embeddings that it is written and searched with."""

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
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.stored_vectors import StoredVectors
from langchain_e2rank.embeddings import E2RankEmbeddings

logger = logging.getLogger(__name__)

Conditions = types.Filter | Any | None
"""Conditions on metadata (see `e2rank_rag.types.Filter`), or a qdrant_client.models.Filter."""


class Collection:
    """Takes any embeddings. Only those of E2Rank say which model they are, so only they are
    recorded in the collection, and held against what is there already.

    A collection that nobody has created is an empty one.
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
        """Whether it is there."""
        exists = self.store.exists
        if not exists:
            logger.warning("%s is not there: nothing is found in it", self.store.name)
        return exists

    async def aexists(self) -> bool:
        return await asyncio.to_thread(lambda: self.exists)

    def write(self, documents: Sequence[types.Document]) -> None:
        """Embed and write; documents with a known id are replaced."""
        texts = [document.text for document in documents]
        if isinstance(self.embedding, E2RankEmbeddings):
            vectors = self.embedding.encoder.encode_documents(texts)
        else:
            vectors = np.asarray(self.embedding.embed_documents(texts), dtype=np.float32)
        self._prepare(vectors)
        self.store.upsert(documents, vectors)

    async def awrite(self, documents: Sequence[types.Document]) -> None:
        texts = [document.text for document in documents]
        if isinstance(self.embedding, E2RankEmbeddings):
            vectors = await (await self.embedding.aencoder()).aencode_documents(texts)
        else:
            vectors = np.asarray(await self.embedding.aembed_documents(texts), dtype=np.float32)
        await asyncio.to_thread(self._prepare, vectors)
        await self.store.aupsert(documents, vectors)

    def search(self, query: str, k: int, filter: Conditions) -> list[types.Hit]:
        """The k nearest documents to a query."""
        if not isinstance(self.embedding, E2RankEmbeddings):
            return self.nearest(self.embedding.embed_query(query), k, filter)
        if not self.exists:
            return []
        return self._searcher(self.embedding.encoder).search(query, top_k=k, filter=filter)

    async def asearch(self, query: str, k: int, filter: Conditions) -> list[types.Hit]:
        if not isinstance(self.embedding, E2RankEmbeddings):
            return await self.anearest(await self.embedding.aembed_query(query), k, filter)
        if not await self.aexists():
            return []
        searcher = self._searcher(await self.embedding.aencoder())
        return await searcher.asearch(query, top_k=k, filter=filter)

    def nearest(self, vector: Sequence[float], k: int, filter: Conditions) -> list[types.Hit]:
        """The k nearest documents to a vector."""
        row = np.asarray(vector, dtype=np.float32)
        return self.store.search(row, top_k=k, filter=filter) if self.exists else []

    async def anearest(
        self, vector: Sequence[float], k: int, filter: Conditions
    ) -> list[types.Hit]:
        row = np.asarray(vector, dtype=np.float32)
        if not await self.aexists():
            return []
        return await self.store.asearch(row, top_k=k, filter=filter)

    def _searcher(self, encoder: types.TextEncoder) -> SearchPipeline:
        """One for as long as its parts are the same, since it remembers what it has checked."""
        store, policy = self.store, self.stored_vectors
        return self._pipeline.get(
            (encoder, store, policy), lambda: SearchPipeline(encoder, store, stored_vectors=policy)
        )

    def _prepare(self, vectors: types.Embeddings) -> None:
        """Create it, or make sure that these vectors belong in it."""
        store, embedding = self.store, self.embedding
        if not isinstance(embedding, E2RankEmbeddings):
            store.prepare(vectors.shape[1])
            return
        encoder = embedding.encoder
        store.prepare(vectors.shape[1], fingerprint=encoder.fingerprint, model=encoder.name)
        if self.stored_vectors == "check":
            probe_foreign(encoder, store)
