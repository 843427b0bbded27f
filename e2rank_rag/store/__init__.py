"""The store of documents and their vectors. qdrant-client is loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from e2rank_rag.store.layout import LANGCHAIN_LAYOUT, Layout

if TYPE_CHECKING:
    from e2rank_rag.store.qdrant import QdrantStore

__all__ = ["QdrantStore", "Layout", "LANGCHAIN_LAYOUT"]


def __getattr__(name: str) -> Any:
    if name == "QdrantStore":
        from e2rank_rag.store.qdrant import QdrantStore

        return QdrantStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
