"""Haystack's Qdrant store, or one of ours, as the store that rerankers and searches read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from haystack_integrations.components.rankers.e2rank._backend import DocumentText
from haystack_integrations.components.rankers.e2rank._haystack_store import HaystackStore
from haystack_integrations.components.rankers.e2rank._layout import Whole, whole
from haystack_integrations.components.rankers.e2rank._written_stores import (
    WANTED,
    check_arguments,
    open_arguments,
    written,
)

from e2rank_rag.locks import Lock
from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.types import Document, Embeddings, Hit, Store

if TYPE_CHECKING:
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

HAYSTACK_METADATA_KEY = "meta"


class StoreHandle:
    """A document store as the user gave it, opened at first use and only to read.

    given: a QdrantDocumentStore, see `HaystackStore`; a store of ours; or a dict with the arguments
        of `QdrantStore.open` or of a QdrantClient, the form that a store of ours has in YAML.
    """

    def __init__(self, given: QdrantDocumentStore | Store | Mapping[str, Any]) -> None:
        if isinstance(given, Mapping):
            check_arguments(given)
        elif not _is_ours(given):
            _check_haystack_store(given)
        self.given: Any = given
        known = isinstance(given, Mapping) or _is_ours(given)
        self._haystack = None if known else HaystackStore(self.given)
        self._opened: Any = None
        self._lock = Lock()

    def open(self) -> Store:
        """The store; the same one until it is closed, or its collection is another."""
        with self._lock:
            if self._haystack is not None:
                return self._haystack.open()
            if self._opened is None:
                self._opened = self._open_given()
            opened: Store = self._opened
            return opened

    def _open_given(self) -> Any:
        given = self.given
        if isinstance(given, Mapping):
            return open_arguments(given)
        if isinstance(given, QdrantStore):
            return given.with_layout(whole(given.layout, given.vector_name))
        return given

    def close(self) -> None:
        """Close what opens again by itself.

        Left alone are stores of ours that the user opened, and documents in memory, which would be
        lost.
        """
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is not None and isinstance(self.given, Mapping):
                opened.close()
            if self._haystack is not None:
                self._haystack.close()

    async def aclose(self) -> None:
        """`close`, and with it the asynchronous clients of the running event loop."""
        if self._haystack is not None:
            await self._haystack.aclose()
            return
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None and isinstance(self.given, Mapping):
            await opened.aclose()

    def to_dict(self) -> Any:
        """For YAML; ValueError where a setting cannot be written down, or must not be."""
        return written(self.given)

    @property
    def layout(self) -> Layout:
        """Where a point keeps id, content and meta."""
        layout: Layout = getattr(self.open(), "layout", Layout())
        return layout


class Searched:
    """A store whose hits are `Whole`: their text is what was embedded."""

    def __init__(self, store: Store, text: DocumentText) -> None:
        self.store = store
        self._text = text

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def search_batch(
        self, embeddings: Embeddings, *, top_k: int, filter: Any = None
    ) -> list[list[Hit]]:
        return self._as_embedded(self.store.search_batch(embeddings, top_k=top_k, filter=filter))

    async def asearch_batch(
        self, embeddings: Embeddings, *, top_k: int, filter: Any = None
    ) -> list[list[Hit]]:
        found = await self.store.asearch_batch(embeddings, top_k=top_k, filter=filter)
        return self._as_embedded(found)

    def _as_embedded(self, rankings: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
        return [
            [replace(hit, document=self._whole(hit.document)) for hit in hits] for hits in rankings
        ]

    def _whole(self, document: Document) -> Whole:
        text = self._text.of(document.text, document.meta)
        if isinstance(document, Whole):
            return replace(document, text=text)
        return Whole(document.id, text, document.meta, content=document.text)


def _is_ours(given: Any) -> bool:
    return hasattr(given, "search_batch")


def _check_haystack_store(given: Any) -> None:
    try:
        from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
    except ImportError as error:
        raise ImportError(
            "a Qdrant document store needs qdrant-haystack: pip install 'e2rank-rag[haystack]'"
        ) from error
    if not isinstance(given, QdrantDocumentStore):
        raise ValueError(f"{WANTED}; got {type(given).__name__}")
