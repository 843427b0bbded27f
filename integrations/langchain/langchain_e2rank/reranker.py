"""E2RankReranker: LangChain documents from anywhere into a better order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, PrivateAttr
from qdrant_client import AsyncQdrantClient, QdrantClient

from e2rank_rag import types
from e2rank_rag.rerankers import ListwiseReranker, RerankReport
from e2rank_rag.store.layout import LANGCHAIN_LAYOUT, Layout
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.stored_vectors import StoredVectors
from langchain_e2rank._shared import E2RankModel, atell, scored, tell
from langchain_e2rank.vectorstore import E2RankVectorStore

POINT_ID = "_id"
COLLECTION = "_collection_name"
"""What langchain-qdrant adds to the metadata of every document that it finds."""

Stored = Mapping[str, types.StoredDocument]


@dataclass
class _Lookup:
    """Documents of one collection: `ids[place]` is the id there of the document at that place."""

    store: QdrantStore
    ids: dict[int, str] = field(default_factory=dict)


class E2RankReranker(E2RankModel, BaseDocumentCompressor):
    """One forward pass over the query and the first documents gives a vector to score all with.

    Scores are cosines, in `metadata["relevance_score"]`: comparable within one query only.

    top_n: how many come back; None: all. prompt_depth, query_weight, passes: see
    `e2rank_rag.ListwiseReranker`; the other parameters of the model: see `E2RankModel`.

    Documents whose vectors are in an index are not encoded, but for two of them, once, to see that
    this model wrote it (`stored_vectors`: "check", "trust", or "ignore" to encode all). Given a
    client, the vectors of documents that langchain-qdrant found are read by `metadata["_id"]`, from
    `collection_name` or else from the collection that each document names; `layout` and
    `vector_name` say how they lie there. Given a vectorstore, those of its documents by their id.
    """

    top_n: int | None = Field(default=3, gt=0)
    prompt_depth: int | None = Field(default=None, ge=0)
    query_weight: float | None = Field(default=None, ge=0.0, le=1.0)
    passes: int = Field(default=1, ge=1)
    stored_vectors: StoredVectors = "check"
    collection_name: str | None = None
    layout: Layout = LANGCHAIN_LAYOUT
    vector_name: str | None = None
    client: QdrantClient | None = Field(default=None, exclude=True, repr=False)
    async_client: AsyncQdrantClient | None = Field(default=None, exclude=True, repr=False)
    vectorstore: E2RankVectorStore | None = Field(default=None, exclude=True, repr=False)

    _listwise: Any = PrivateAttr(default=None)
    _stores: dict[str, QdrantStore] = PrivateAttr(default_factory=dict)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The `top_n` best documents, best first, as copies with their score."""
        return self.rank(documents, query, callbacks)[: self.top_n]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`, without blocking the event loop."""
        return (await self.arank(documents, query, callbacks))[: self.top_n]

    def rank(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """All documents, best first, as copies with their score."""
        if not documents:
            return []
        lookups = self._lookups(documents)
        stored = [part.store.get([*part.ids.values()], with_embeddings=True) for part in lookups]
        hits = _hits(documents, lookups, stored)
        rankings, report = self.listwise(self.encoder).explain_batch([query], [hits])
        tell("e2rank.rerank", _summary(report), callbacks)
        return _documents(documents, rankings[0])

    async def arank(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `rank`, without blocking the event loop."""
        if not documents:
            return []
        lookups = self._lookups(documents)
        reads = [part.store.aget([*part.ids.values()], with_embeddings=True) for part in lookups]
        stored = await asyncio.gather(*reads)
        hits = _hits(documents, lookups, stored)
        encoder = await self.aencoder()
        call = partial(self.listwise(encoder).explain_batch, [query], [hits])
        rankings, report = await encoder.run_async(call)
        await atell("e2rank.rerank", _summary(report), callbacks)
        return _documents(documents, rankings[0])

    def listwise(self, encoder: types.TextEncoder) -> ListwiseReranker:
        """The core's reranker as configured here; one per encoder, as it remembers its probes."""
        known: ListwiseReranker | None = self._listwise
        if known is None or known.encoder is not encoder:
            known = self._listwise = ListwiseReranker(
                encoder,
                prompt_depth=self.prompt_depth,
                query_weight=self.query_weight,
                passes=self.passes,
                stored_vectors=self.stored_vectors,
            )
        return known

    def _lookups(self, documents: Sequence[Document]) -> list[_Lookup]:
        """Which documents are looked for in which collection."""
        if self.stored_vectors == "ignore":
            return []
        lookups: dict[QdrantStore, _Lookup] = {}
        for place, (store, id) in self._addresses(documents):
            lookups.setdefault(store, _Lookup(store)).ids[place] = id
        return list(lookups.values())

    def _addresses(
        self, documents: Sequence[Document]
    ) -> Iterator[tuple[int, tuple[QdrantStore, str]]]:
        for place, document in enumerate(documents):
            point = document.metadata.get(POINT_ID)
            named = document.metadata.get(COLLECTION, self.collection_name)
            wanted = named if self.collection_name in (None, named) else None
            if self.client is not None and point is not None and wanted is not None:
                store, id = self._store(self.client, wanted), str(point)
            elif self.vectorstore is not None and document.id is not None:
                store, id = self.vectorstore.store, document.id
            else:
                continue
            if _can_be_read(store.layout, id):
                yield place, (store, id)

    def _store(self, client: QdrantClient, collection: str) -> QdrantStore:
        if collection not in self._stores:
            self._stores[collection] = QdrantStore(
                client,
                collection,
                # langchain-qdrant names points, whatever their payload calls the document.
                layout=replace(self.layout, id_key=None),
                vector_name=self.vector_name,
                async_client=self.async_client,
            )
        return self._stores[collection]


def _can_be_read(layout: Layout, id: str) -> bool:
    """Other stores call something `_id` too, which need not be a point id of Qdrant."""
    try:
        layout.point_id(id)
    except ValueError:
        return False
    return True


def _hits(
    documents: Sequence[Document], lookups: Sequence[_Lookup], stored: Sequence[Stored]
) -> list[types.Hit]:
    """With the stored vector, where what is stored has the text that the document has here."""
    hits = [
        types.Hit(_core_document(document, place), 0.0) for place, document in enumerate(documents)
    ]
    for part, found in zip(lookups, stored, strict=True):
        for place, id in part.ids.items():
            if id in found and found[id].document.text == documents[place].page_content:
                vector = found[id].embedding
                hits[place] = replace(hits[place], embedding=vector, source=part.store.name)
    return hits


def _core_document(document: Document, place: int) -> types.Document:
    id = document.id or document.metadata.get(POINT_ID) or place
    return types.Document(str(id), document.page_content, {"place": place})


def _documents(documents: Sequence[Document], ranking: Sequence[types.Hit]) -> list[Document]:
    return [scored(documents[hit.document.meta["place"]], hit.score) for hit in ranking]


def _summary(report: RerankReport) -> dict[str, int]:
    return {
        "documents": report.vectors.reused + report.vectors.encoded,
        "vectors_reused": report.vectors.reused,
        "vectors_encoded": report.vectors.encoded,
        "documents_in_prompt": sum(prompt.documents for prompt in report.prompts),
        "prompt_tokens": sum(prompt.tokens for prompt in report.prompts),
    }
