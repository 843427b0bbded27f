"""E2RankReranker: documents of any LangChain retriever in a better order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import nan
from typing import Any, Literal

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, PrivateAttr
from qdrant_client import AsyncQdrantClient, QdrantClient

from e2rank_rag import types
from e2rank_rag.evidence import Evidence
from e2rank_rag.locks import Kept
from e2rank_rag.models.folders import System, system_of
from e2rank_rag.rerankers import BaseReranker, ListwiseReranker, RerankReport, load_reranker
from e2rank_rag.store.layout import LANGCHAIN_LAYOUT, Layout
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.vectors import CandidateVectors, StoredVectors
from langchain_e2rank._shared import SCORE, E2RankModel, atell, scored, tell
from langchain_e2rank.vectorstore import E2RankVectorStore

POINT_ID = "_id"
COLLECTION = "_collection_name"
"""langchain-qdrant adds these two to the metadata of the documents that it retrieves."""

LISTWISE_OPTIONS = ("prompt_depth", "query_weight", "evidence", "passes")

Ranking = list[tuple[Document, types.Hit]]


class E2RankReranker(E2RankModel, BaseDocumentCompressor):
    """Reranks documents with one model, which its folder describes (see `E2RankModel`).

    - E2Rank: one forward pass over the query and the best documents gives a vector; scores are
      cosines with it, plus what the documents' words add where the model's recipe says so.
    - ResRank: one forward pass over the query and one vector per document; scores are cosines.
    - Cross-encoder: one forward pass over each text with the query; scores are not cosines.

    Scores are in `metadata["relevance_score"]` and comparable within one query only. A document
    that was retrieved twice (same id; without an id, same text and metadata) comes back once.

    system: for a folder that does not say what it is: "rankt5" for a T5.
    top_n: how many documents come back; None: all.
    score_key: the metadata key of the score. None leaves the score out, for retrievers that compare
        documents by their metadata, as MultiQueryRetriever does.
    prompt_depth, query_weight, passes: for E2Rank models only; see `e2rank_rag.ListwiseReranker`.
    evidence: what words add to an E2Rank's cosines, an `e2rank_rag.Evidence`. None takes the
        model's own; False adds nothing, so scores are cosines.
    explain: put an explanation of each document's score and rank into `metadata["explanation"]`:
        `e2rank_rag.Explanation.as_dict`.
    stored_vectors: documents whose vectors are in an index are not encoded, except two of them that
        are compared where the index has no record of its model ("check"); "trust" compares none,
        "ignore" encodes all.
    client: reads the vectors of documents that langchain-qdrant retrieved, by `metadata["_id"]`.
        They are in `collection_name`, or else in the collection that each document names;
        `layout` and `vector_name` describe it.
    vectorstore: holds the vectors of its documents, by their ids.
    """

    system: System | None = None
    top_n: int | None = Field(default=3, gt=0)
    score_key: str | None = Field(default=SCORE, min_length=1)
    prompt_depth: int | None = Field(default=None, ge=0)
    query_weight: float | None = Field(default=None, ge=0.0, le=1.0)
    evidence: Evidence | Literal[False] | None = None
    passes: int = Field(default=1, ge=1)
    explain: bool = False
    stored_vectors: StoredVectors = "check"
    collection_name: str | None = None
    layout: Layout = LANGCHAIN_LAYOUT
    vector_name: str | None = None
    client: QdrantClient | None = Field(default=None, exclude=True, repr=False)
    async_client: AsyncQdrantClient | None = Field(default=None, exclude=True, repr=False)
    vectorstore: E2RankVectorStore | None = Field(default=None, exclude=True, repr=False)

    _listwise: Kept[ListwiseReranker] = PrivateAttr(default_factory=Kept)
    _other: Kept[BaseReranker | None] = PrivateAttr(default_factory=partial(Kept, closes=True))
    _stores: Kept[dict[str, QdrantStore]] = PrivateAttr(default_factory=Kept)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The `top_n` best documents, best first, as copies with their score."""
        return self.rank(documents, query, callbacks)[: self.top_n]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` without blocking the event loop."""
        return (await self.arank(documents, query, callbacks))[: self.top_n]

    def rank(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """All documents, best first, as copies with their score."""
        ranking = self.ranking(documents, query, callbacks)
        return [scored(document, hit, self.score_key) for document, hit in ranking]

    async def arank(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`rank` without blocking the event loop."""
        ranking = await self.aranking(documents, query, callbacks)
        return [scored(document, hit, self.score_key) for document, hit in ranking]

    def ranking(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        explain: bool | None = None,
    ) -> Ranking:
        """All documents, best first, unchanged and beside the hits that score them.

        explain: whether the hits have explanations; None takes the field.
        """
        if not documents:
            return []
        reranker, hits = self.opened(), _hits(documents)
        vectors = reranker.vectors
        for store, ids in self._ids_by_store(documents, vectors):
            hits = vectors.read(hits, store, ids=ids)
        asked = self.explain if explain is None else explain
        reranking = reranker.rerank_batch([query], [hits], explain=asked)
        tell("e2rank.rerank", _summary(hits, reranking.report), callbacks)
        return _ranked(documents, reranking[0])

    async def aranking(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        explain: bool | None = None,
    ) -> Ranking:
        """`ranking` without blocking the event loop."""
        if not documents:
            return []
        # Opening a model takes seconds.
        reranker, hits = await asyncio.to_thread(self.opened), _hits(documents)
        vectors = reranker.vectors
        for store, ids in self._ids_by_store(documents, vectors):
            hits = await vectors.aread(hits, store, ids=ids)
        asked = self.explain if explain is None else explain
        reranking = await reranker.arerank_batch([query], [hits], explain=asked)
        await atell("e2rank.rerank", _summary(hits, reranking.report), callbacks)
        return _ranked(documents, reranking[0])

    def opened(self, encoder: types.TextEncoder | None = None) -> BaseReranker:
        """The reranker of `e2rank_rag` with these settings; the first call takes seconds.

        encoder: an open encoder of the same model, which an E2Rank uses instead of its own.
        Raises ValueError for `prompt_depth`, `query_weight`, `evidence` and `passes` with another
        system.
        """
        # Read once: another thread may assign to a field meanwhile.
        stated, listwise = self.stated(), self._listwise_options()
        system, policy = self.system, self.stored_vectors

        def load() -> BaseReranker | None:
            """None for an E2Rank, whose encoder may be another component's."""
            where = {
                name: stated[name] for name in ("revision", "local_files_only") if name in stated
            }
            if system_of(stated["model"], system, **where) == "e2rank":
                return None
            return load_reranker(system=system, stored_vectors=policy, listwise=listwise, **stated)

        other = self._other.get((stated, system, policy, listwise), load)
        if other is not None:
            return other
        encoder = self.encoder_of(stated) if encoder is None else encoder
        # One reranker for each encoder, because it remembers its probes.
        return self._listwise.get(
            (encoder, policy, listwise),
            lambda: ListwiseReranker(encoder, stored_vectors=policy, **listwise),
        )

    def close(self) -> None:
        """Free the model, unless other components use it. A later call opens it again."""
        super().close()
        self._listwise.clear()
        self._other.clear()

    def _listwise_options(self) -> dict[str, Any]:
        """Those that differ from their defaults."""
        fields = type(self).model_fields
        given = {name: getattr(self, name) for name in LISTWISE_OPTIONS}
        return {name: value for name, value in given.items() if value != fields[name].default}

    def _ids_by_store(
        self, documents: Sequence[Document], vectors: CandidateVectors | None
    ) -> list[tuple[QdrantStore, list[str | None]]]:
        """Each store that may hold vectors, and the documents' ids there; None: not in this store.

        Nothing where the model reads no vectors.
        """
        found: dict[QdrantStore, list[str | None]] = {}
        for place, document in enumerate(documents if vectors is not None else ()):
            address = self._address(document)
            if address is not None:
                store, id = address
                found.setdefault(store, [None] * len(documents))[place] = id
        return list(found.items())

    def _address(self, document: Document) -> tuple[QdrantStore, str] | None:
        """The store that may hold the document's vector, and its id there."""
        point = document.metadata.get(POINT_ID)
        named = document.metadata.get(COLLECTION, self.collection_name)
        wanted = named if self.collection_name in (None, named) else None
        if self.client is not None and point is not None and wanted is not None:
            store, id = self._store(self.client, wanted), str(point)
        elif self.vectorstore is not None and document.id is not None:
            store, id = self.vectorstore.store, document.id
        else:
            return None
        try:
            store.layout.point_id(id)
        except ValueError:
            return None  # Another store's `_id`, which need not be a point id of Qdrant.
        return store, id

    def _store(self, client: QdrantClient, collection: str) -> QdrantStore:
        # langchain-qdrant gives the id of the point, whatever id the payload has.
        options = {
            "layout": replace(self.layout, id_key=None),
            "vector_name": self.vector_name,
            "async_client": self.async_client,
        }
        stores = self._stores.get((client, options), dict)
        if collection not in stores:
            stores[collection] = QdrantStore(client, collection, **options)
        return stores[collection]


def _hits(documents: Sequence[Document]) -> list[types.Hit]:
    return [
        types.Hit(types.Document(id, document.page_content, {"place": place}), nan)
        for place, (id, document) in enumerate(zip(_identities(documents), documents, strict=True))
    ]


def _identities(documents: Sequence[Document]) -> list[str]:
    """An id for each document. Without ids, documents with equal text and metadata share one."""
    ids = []
    without_id: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        if document.id:
            ids.append(document.id)
            continue
        alike = without_id.setdefault(document.page_content, [])
        same = (other for other in alike if documents[other].metadata == document.metadata)
        first = next(same, place)
        if first == place:
            alike.append(place)
        ids.append(f"{document.metadata.get(POINT_ID, 'without id')} (number {first + 1})")
    return ids


def _ranked(documents: Sequence[Document], ranking: Sequence[types.Hit]) -> Ranking:
    return [(documents[hit.document.meta["place"]], hit) for hit in ranking]


def _summary(hits: Sequence[types.Hit], report: RerankReport) -> dict[str, int]:
    return {
        "documents": len(hits),
        "vectors_reused": report.vectors.reused,
        "vectors_encoded": report.vectors.encoded,
        "documents_in_prompt": sum(prompt.documents for prompt in report.prompts),
        "prompt_tokens": sum(prompt.tokens for prompt in report.prompts),
    }
