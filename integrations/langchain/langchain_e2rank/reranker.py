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
from e2rank_rag.locks import Kept
from e2rank_rag.models.folders import System, system_of
from e2rank_rag.rerankers import (
    BaseReranker,
    ListwiseReranker,
    RerankReport,
    VectorReranker,
    load_reranker,
)
from e2rank_rag.store.layout import LANGCHAIN_LAYOUT, Layout
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.vectors import StoredVectors
from langchain_e2rank._shared import SCORE, E2RankModel, atell, scored, tell
from langchain_e2rank.vectorstore import E2RankVectorStore

POINT_ID = "_id"
COLLECTION = "_collection_name"
"""What langchain-qdrant adds to the metadata of every document that it finds."""

Stored = Mapping[str, types.StoredDocument]
Ranking = list[tuple[Document, float]]


@dataclass
class _Lookup:
    """Documents of one collection: `ids[place]` is the id there of the document at that place."""

    store: QdrantStore
    ids: dict[int, str] = field(default_factory=dict)


class E2RankReranker(E2RankModel, BaseDocumentCompressor):
    """One forward pass over the query and the first documents gives a vector to score all with.

    Scores are cosines, in `metadata["relevance_score"]`: comparable within one query only. A
    document that was retrieved twice (same id; without an id, same text and metadata) comes once.

    That is an E2Rank. What the model is, its folder says: a ResRank reads the query and one vector
    per document, a RankT5 each text with the query (its scores are no cosines) and no vectors.

    system: only where the folder does not say: "rankt5" for a T5 or another library's
        cross-encoder.
    top_n: how many come back; None: all. score_key: where in the metadata the score is; None leaves
    it out, for what compares documents by their metadata, as MultiQueryRetriever does.
    prompt_depth, query_weight, passes: of an E2Rank only, see `e2rank_rag.ListwiseReranker`; the
    other parameters of the model: see `E2RankModel`.

    Documents whose vectors are in an index are not encoded, but for two of them where the index has
    no record of its model (`stored_vectors`: "check", "trust", or "ignore" to encode all). Given a
    client, the vectors of documents that langchain-qdrant found are read by `metadata["_id"]`, from
    `collection_name` or else from the collection that each document names; `layout` and
    `vector_name` say how they lie there. Given a vectorstore, those of its documents by their id.
    """

    system: System | None = None
    top_n: int | None = Field(default=3, gt=0)
    score_key: str | None = Field(default=SCORE, min_length=1)
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
        """As `compress_documents`, without blocking the event loop."""
        return (await self.arank(documents, query, callbacks))[: self.top_n]

    def rank(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """All documents, best first, as copies with their score."""
        ranking = self.ranking(documents, query, callbacks)
        return [scored(document, score, self.score_key) for document, score in ranking]

    async def arank(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `rank`, without blocking the event loop."""
        ranking = await self.aranking(documents, query, callbacks)
        return [scored(document, score, self.score_key) for document, score in ranking]

    def ranking(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Ranking:
        """All documents as they came, best first, beside their scores."""
        if not documents:
            return []
        reranker = self.opened()
        lookups = self._lookups(documents, reranker)
        _trust_recorded(lookups, reranker)
        stored = [part.store.get([*part.ids.values()], with_embeddings=True) for part in lookups]
        hits = _hits(documents, lookups, stored)
        rankings, report = reranker.explain_batch([query], [hits])
        tell("e2rank.rerank", _summary(hits, report), callbacks)
        return _ranked(documents, rankings[0])

    async def aranking(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Ranking:
        """As `ranking`, without blocking the event loop."""
        if not documents:
            return []
        # Opening a model takes seconds.
        reranker = await asyncio.to_thread(self.opened)
        lookups = self._lookups(documents, reranker)
        await asyncio.to_thread(_trust_recorded, lookups, reranker)
        reads = [part.store.aget([*part.ids.values()], with_embeddings=True) for part in lookups]
        stored = await asyncio.gather(*reads)
        hits = _hits(documents, lookups, stored)
        call = partial(reranker.explain_batch, [query], [hits])
        rankings, report = await reranker.run_async(call)
        await atell("e2rank.rerank", _summary(hits, report), callbacks)
        return _ranked(documents, rankings[0])

    def opened(self, encoder: types.TextEncoder | None = None) -> BaseReranker:
        """The core's reranker as configured here; this takes seconds the first time.

        encoder: of the same model; an E2Rank uses it in place of one that is opened here.
        Raises ValueError for `prompt_depth`, `query_weight` and `passes` where the model has none.
        """
        made_of = (self.stated(), self.system, self.stored_vectors, self._listwise_options())
        other = self._other.get(made_of, self._load)
        if other is not None:
            return other
        return self._over(self.encoder if encoder is None else encoder)

    def close(self) -> None:
        """Free the model, unless other components use it. A later call opens it again."""
        super().close()
        self._listwise.clear()
        self._other.clear()

    def _over(self, encoder: types.TextEncoder) -> ListwiseReranker:
        """One per encoder, as it remembers its probes."""
        options = {**self._listwise_options(), "stored_vectors": self.stored_vectors}
        return self._listwise.get((encoder, options), lambda: ListwiseReranker(encoder, **options))

    def _load(self) -> BaseReranker | None:
        """The reranker; None of an E2Rank, whose encoder may be another component's."""
        found = system_of(
            self.model,
            self.system,
            revision=self.revision,
            local_files_only=self.local_files_only,
        )
        if found == "e2rank":
            return None
        return load_reranker(
            system=self.system,
            stored_vectors=self.stored_vectors,
            listwise=self._listwise_options(),
            **self.stated(),
        )

    def _listwise_options(self) -> dict[str, Any]:
        """Those that are not left as they are."""
        names = ("prompt_depth", "query_weight", "passes")
        fields = type(self).model_fields
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value != fields[name].default}

    def _lookups(self, documents: Sequence[Document], reranker: BaseReranker) -> list[_Lookup]:
        """Which documents are looked for in which collection; none where vectors are not read."""
        if self.stored_vectors == "ignore" or not isinstance(reranker, VectorReranker):
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
        # langchain-qdrant names points, whatever their payload calls the document.
        options = {
            "layout": replace(self.layout, id_key=None),
            "vector_name": self.vector_name,
            "async_client": self.async_client,
        }
        stores = self._stores.get((client, options), dict)
        if collection not in stores:
            stores[collection] = QdrantStore(client, collection, **options)
        return stores[collection]


def _trust_recorded(lookups: Sequence[_Lookup], reranker: BaseReranker) -> None:
    if isinstance(reranker, VectorReranker):
        for part in lookups:
            reranker.vectors.trust_as_recorded(part.store)


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
        types.Hit(types.Document(id, document.page_content, {"place": place}), 0.0)
        for place, (id, document) in enumerate(zip(_identities(documents), documents, strict=True))
    ]
    for part, found in zip(lookups, stored, strict=True):
        for place, id in part.ids.items():
            if id in found and found[id].document.text == documents[place].page_content:
                vector = found[id].embedding
                hits[place] = replace(hits[place], embedding=vector, source=part.store.name)
    return hits


def _identities(documents: Sequence[Document]) -> list[str]:
    """The id of each; documents without one are the same where text and metadata are."""
    ids = []
    unnamed: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        if document.id:
            ids.append(document.id)
            continue
        alike = unnamed.setdefault(document.page_content, [])
        same = (other for other in alike if documents[other].metadata == document.metadata)
        first = next(same, place)
        if first == place:
            alike.append(place)
        ids.append(f"{document.metadata.get(POINT_ID, 'without id')} (number {first + 1})")
    return ids


def _ranked(documents: Sequence[Document], ranking: Sequence[types.Hit]) -> Ranking:
    return [(documents[hit.document.meta["place"]], hit.score) for hit in ranking]


def _summary(hits: Sequence[types.Hit], report: RerankReport) -> dict[str, int]:
    return {
        "documents": len(hits),
        "vectors_reused": report.vectors.reused,
        "vectors_encoded": report.vectors.encoded,
        "documents_in_prompt": sum(prompt.documents for prompt in report.prompts),
        "prompt_tokens": sum(prompt.tokens for prompt in report.prompts),
    }
