"""Haystack's Qdrant store, or one of ours, as the store that rerankers and searches read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from haystack_integrations.components.rankers.e2rank._backend import DocumentText

from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.types import Document, Embeddings, Hit, Store

if TYPE_CHECKING:
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

MEMORY = ":memory:"
HAYSTACK_METADATA_KEY = "meta"
WANTED = (
    "document_store must be a QdrantDocumentStore, an e2rank_rag store, or the arguments of "
    "QdrantStore.open as a dict"
)


class StoreHandle:
    """A document store as the user gave it, opened at first use.

    given: a QdrantDocumentStore, whose client is shared; a store of ours; or a dict with the
        arguments of `QdrantStore.open`, the form that a store of ours has in YAML.
    """

    def __init__(self, given: QdrantDocumentStore | Store | Mapping[str, Any]) -> None:
        if isinstance(given, Mapping):
            _check_arguments(given)
        elif not _is_ours(given):
            _check_haystack_store(given)
        self.given: Any = given
        self._opened: Store | None = None
        self._client: Any = None
        self._lock = threading.Lock()

    def open(self) -> Store:
        """The store; the same one until it is closed."""
        with self._lock:
            if isinstance(self.given, Mapping):
                if self._opened is None:
                    self._opened = _open(self.given)
                return self._opened
            if _is_ours(self.given):
                ours: Store = self.given
                return ours
            # Its client is made when it is first used, and made anew after its `close`.
            self.given._initialize_client()
            if self._opened is None or self.given._client is not self._client:
                self._client = self.given._client
                self._opened = _sharing(self.given)
            return self._opened

    def close(self) -> None:
        """Close what opens again by itself.

        Left alone are stores of ours that the user opened, and documents in memory, which would be
        lost.
        """
        with self._lock:
            opened, self._opened = self._opened, None
            if isinstance(self.given, Mapping):
                if opened is not None:
                    opened.close()
            elif not _is_ours(self.given) and self.given.location != MEMORY:
                self.given.close()

    async def aclose(self) -> None:
        """`close`, and with it the asynchronous client of a QdrantDocumentStore."""
        await asyncio.to_thread(self.close)
        if hasattr(self.given, "close_async") and getattr(self.given, "location", "") != MEMORY:
            await self.given.close_async()

    def to_dict(self) -> Any:
        """For YAML. Nothing that reads may drop the collection, so `recreate_index` is False."""
        if isinstance(self.given, QdrantStore):
            return _arguments(self.given)
        if isinstance(self.given, Mapping) or _is_ours(self.given):
            return self.given
        data = self.given.to_dict()
        data["init_parameters"]["recreate_index"] = False
        return data

    @property
    def layout(self) -> Layout:
        """Where a point keeps id, content and meta."""
        layout: Layout = getattr(self.open(), "layout", Layout())
        return layout


@dataclass(frozen=True, slots=True)
class Retrieved(Document):
    """A document of the store: `text` as it is embedded, `content` as it is stored."""

    content: str = ""


class Searched:
    """A store whose hits are `Retrieved`: their text is what was embedded."""

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
            [replace(hit, document=self._retrieved(hit.document)) for hit in hits]
            for hits in rankings
        ]

    def _retrieved(self, document: Document) -> Retrieved:
        text = self._text.of(document.text, document.meta)
        return Retrieved(document.id, text, document.meta, document.text)


def _is_ours(given: Any) -> bool:
    return hasattr(given, "search_batch")


def _sharing(given: QdrantDocumentStore) -> QdrantStore:
    from haystack_integrations.document_stores.qdrant.converters import DENSE_VECTORS_NAME

    assert given._client is not None
    vector_name = DENSE_VECTORS_NAME if given.use_sparse_embeddings else None
    return QdrantStore(given._client, given.index, vector_name=vector_name)


def _open(arguments: Mapping[str, Any]) -> QdrantStore:
    layout = arguments.get("layout") or {}
    return QdrantStore.open(**{**arguments, "layout": Layout(**layout)})


def _arguments(store: QdrantStore) -> dict[str, Any]:
    """What `QdrantStore.open` opens the same collection with; ValueError where it cannot."""
    options = store.client.init_options
    location = options.get("path") or options.get("url") or options.get("location")
    if location is None or options.get("api_key") is not None:
        raise ValueError(
            f"{store.name} was opened with a client whose settings or API key cannot be written "
            "down; give a QdrantDocumentStore of the same collection, whose api_key is a Secret"
        )
    arguments: dict[str, Any] = {"location": str(location), "collection": store.collection}
    if store.vector_name is not None:
        arguments["vector_name"] = store.vector_name
    if store.layout != Layout():
        arguments["layout"] = asdict(store.layout)
    return arguments


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    if missing := [key for key in ("location", "collection") if key not in arguments]:
        raise ValueError(f"{WANTED}; the dict lacks {missing}")
    if "api_key" in arguments:
        raise ValueError(
            "an API key has no place in a pipeline's settings: give a QdrantDocumentStore, whose "
            "api_key is a Secret"
        )


def _check_haystack_store(given: Any) -> None:
    try:
        from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
    except ImportError as error:
        raise ImportError(
            "a Qdrant document store needs qdrant-haystack: pip install 'e2rank-rag[haystack]'"
        ) from error
    if not isinstance(given, QdrantDocumentStore):
        raise ValueError(f"{WANTED}; got {type(given).__name__}")
