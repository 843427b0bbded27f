"""A document store to read: Haystack's, any `types.Store`, or a dict for a QdrantStore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from haystack_integrations.common.e2rank.documents import (
    DocumentText,
    HaystackLayout,
    StoredHaystackDocument,
)
from haystack_integrations.common.e2rank.haystack_store import HaystackStore, check_folder
from haystack_integrations.common.e2rank.serialisation import WANTED, check_arguments, is_store

from e2rank_rag.locks import Kept
from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.store.opening import kind_of
from e2rank_rag.types import Document, Embeddings, Hit, Store, StoredDocument
from e2rank_rag.words import Bm25


class StoreReader(Protocol):
    """Opens a store at first use, and again after `close`."""

    def open(self) -> Store:
        """The store, its documents read whole; the same one until it changes."""
        ...

    def close(self) -> None:
        """Close what was opened here, but no documents in memory, which would be lost."""
        ...

    async def aclose(self) -> None:
        """`close`, and with it the asynchronous clients of the running event loop."""
        ...


def reader_of(given: Any, document_text: DocumentText, bm25: Bm25 | None = None) -> StoreReader:
    """The reader of a document store that `check_store` accepts.

    bm25: as `check_bm25` accepts it.
    """
    check_bm25(given, bm25)
    if isinstance(given, Mapping):
        return DescribedStore(given, document_text)
    if is_store(given):
        return GivenStore(given, document_text)
    return HaystackStore(given, document_text, bm25)


def check_store(given: Any) -> None:
    """ValueError for what is no document store.

    One is a QdrantDocumentStore, a QdrantStore or another `types.Store`, or a dict: the arguments
    of `QdrantStore.open`, or of a QdrantClient, the form in which YAML holds a QdrantStore.
    """
    if isinstance(given, Mapping):
        check_arguments(given)
    elif not is_store(given):
        _check_haystack_store(given)


def check_bm25(given: Any, bm25: Bm25 | None) -> None:
    """ValueError for `bm25` that says what no sparse vectors of this document store hold."""
    if bm25 is None:
        return
    if isinstance(given, Mapping) or is_store(given):
        raise ValueError(
            "bm25 says what the sparse vectors of a QdrantDocumentStore hold; a QdrantStore, and a "
            "dict of its arguments, have bm25 and bm25_name of their own: give it there"
        )
    if not given.use_sparse_embeddings:
        raise ValueError(
            "bm25 says what the sparse vectors of the QdrantDocumentStore hold, and this one has "
            "none: make it with use_sparse_embeddings=True and sparse_idf=True, or leave bm25 out"
        )


class GivenStore:
    """A store that the user opened, and closes."""

    def __init__(self, given: Store, document_text: DocumentText) -> None:
        self._store: Any = EmbeddedTexts(given, document_text)
        if isinstance(given, QdrantStore):
            layout = HaystackLayout.over(given.layout, document_text, given.vector_name)
            self._store = given.with_layout(layout)

    def open(self) -> Store:
        """The store, read with the text that was embedded."""
        store: Store = self._store
        return store

    def close(self) -> None:
        """Do nothing: the user closes the store."""

    async def aclose(self) -> None:
        pass


class DescribedStore:
    """A store that a dict describes; StoreError if its folder is missing."""

    def __init__(self, arguments: Mapping[str, Any], document_text: DocumentText) -> None:
        self._arguments = dict(arguments)
        self._document_text = document_text
        self._opened: Kept[QdrantStore] = Kept(closes=True)

    def open(self) -> QdrantStore:
        """The store, opened by the first call and by the first after `close`."""
        return self._opened.get(None, self._open)

    def close(self) -> None:
        """Close the store."""
        self._opened.clear()

    async def aclose(self) -> None:
        if self._opened.known is not None:
            await self._opened.known.aclose()
        self._opened.clear()

    def _open(self) -> QdrantStore:
        options = dict(self._arguments)
        layout = options.get("layout") or {}
        options["layout"] = HaystackLayout.over(
            layout if isinstance(layout, Layout) else Layout(**layout),
            self._document_text,
            options.get("vector_name"),
        )
        if options.get("bm25") is not None:
            options["bm25"] = Bm25.model_validate(options["bm25"])
        client = options.pop("client", None)
        if client is not None:
            if client.get("path") is not None:
                check_folder(client["path"])
            return QdrantStore(dict(client), options.pop("collection"), **options)
        if kind_of(options["location"]) == "folder":
            check_folder(options["location"])
        return QdrantStore.open(**options)


class EmbeddedTexts:
    """A store without a `Layout` of Qdrant, whose documents have the text that was embedded."""

    def __init__(self, store: Store, document_text: DocumentText) -> None:
        self._store = store
        self._document_text = document_text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def search_batch(self, embeddings: Embeddings, **options: Any) -> list[list[Hit]]:
        """Search the store; each hit has the text that was embedded."""
        return self._hits(self._store.search_batch(embeddings, **options))

    async def asearch_batch(self, embeddings: Embeddings, **options: Any) -> list[list[Hit]]:
        return self._hits(await self._store.asearch_batch(embeddings, **options))

    def get(self, ids: Sequence[str], **options: Any) -> dict[str, StoredDocument]:
        """Stored documents by id, with the text that was embedded."""
        found = self._store.get(ids, **options)
        return {
            id: each._replace(document=self._whole(each.document)) for id, each in found.items()
        }

    def _hits(self, rankings: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
        return [
            [replace(hit, document=self._whole(hit.document)) for hit in hits] for hits in rankings
        ]

    def _whole(self, document: Document) -> StoredHaystackDocument:
        text = self._document_text.of(document.text, document.meta)
        if isinstance(document, StoredHaystackDocument):
            return replace(document, text=text)
        return StoredHaystackDocument(document.id, text, document.meta, content=document.text)


def _check_haystack_store(given: Any) -> None:
    try:
        from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
    except ImportError as error:
        raise ImportError(
            "a Qdrant document store needs qdrant-haystack: pip install 'e2rank-rag[haystack]'"
        ) from error
    if not isinstance(given, QdrantDocumentStore):
        raise ValueError(f"{WANTED}; got {type(given).__name__}")
