"""A document store to read: Haystack's, ours, or a dict that describes one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from haystack_integrations.common.e2rank.documents import DocumentText, HaystackLayout
from haystack_integrations.common.e2rank.haystack_store import HaystackStore, check_folder
from haystack_integrations.common.e2rank.serialisation import WANTED, check_arguments

from e2rank_rag.locks import Kept
from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.store.opening import kind_of


class StoreReader(Protocol):
    """Opens a store at first use, and again after `close`."""

    def open(self) -> QdrantStore:
        """The store, its documents read by a `HaystackLayout`; the same one until it changes."""
        ...

    def close(self) -> None:
        """Close what was opened here, but no documents in memory, which would be lost."""
        ...

    async def aclose(self) -> None:
        """`close`, and with it the asynchronous clients of the running event loop."""
        ...


def reader_of(given: Any, document_text: DocumentText) -> StoreReader:
    """The reader of a document store.

    given: a QdrantDocumentStore, a QdrantStore, or a dict with the arguments of `QdrantStore.open`,
        or of a QdrantClient, the form in which YAML holds a QdrantStore. ValueError for others.
    """
    if isinstance(given, Mapping):
        check_arguments(given)
        return DescribedStore(given, document_text)
    if isinstance(given, QdrantStore):
        return GivenStore(given, document_text)
    _check_haystack_store(given)
    return HaystackStore(given, document_text)


class GivenStore:
    """A store that the user opened, and closes."""

    def __init__(self, given: QdrantStore, document_text: DocumentText) -> None:
        layout = HaystackLayout.over(given.layout, document_text, given.vector_name)
        self._store = given.with_layout(layout)

    def open(self) -> QdrantStore:
        return self._store

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class DescribedStore:
    """A store that a dict describes; StoreError where it is a folder that is not there."""

    def __init__(self, arguments: Mapping[str, Any], document_text: DocumentText) -> None:
        self._arguments = dict(arguments)
        self._document_text = document_text
        self._opened: Kept[QdrantStore] = Kept(closes=True)

    def open(self) -> QdrantStore:
        return self._opened.get(None, self._open)

    def close(self) -> None:
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
        client = options.pop("client", None)
        if client is not None:
            if client.get("path") is not None:
                check_folder(client["path"])
            return QdrantStore(dict(client), options.pop("collection"), **options)
        if kind_of(options["location"]) == "folder":
            check_folder(options["location"])
        return QdrantStore.open(**options)


def _check_haystack_store(given: Any) -> None:
    try:
        from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
    except ImportError as error:
        raise ImportError(
            "a Qdrant document store needs qdrant-haystack: pip install 'e2rank-rag[haystack]'"
        ) from error
    if not isinstance(given, QdrantDocumentStore):
        raise ValueError(f"{WANTED}; got {type(given).__name__}")
