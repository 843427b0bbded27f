"""What a point holds of a Haystack document, beside what the core reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from e2rank_rag.store import Layout
from e2rank_rag.types import Document

DENSE_VECTORS_NAME = "text-dense"
SPARSE_VECTORS_NAME = "text-sparse"


@dataclass(frozen=True, slots=True)
class Whole(Document):
    """A document with the rest of its point.

    content: as it is stored, None where there is none; `text` is what was embedded.
    blob, sparse_embedding: as Haystack writes them down.
    """

    content: str | None = None
    blob: Mapping[str, Any] | None = None
    sparse_embedding: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class HaystackLayout(Layout):
    """A `Layout` whose documents are `Whole`."""

    def document(self, point: Any) -> Whole:
        known = Layout.document(self, point)
        payload = point.payload or {}
        return Whole(
            known.id,
            known.text,
            known.meta,
            content=payload.get(self.content_key),
            blob=payload.get("blob"),
            # In the payload where the store was made without sparse vectors.
            sparse_embedding=_sparse(point.vector) or payload.get("sparse_embedding"),
        )


@dataclass(frozen=True)
class HybridLayout(HaystackLayout):
    """Of a QdrantDocumentStore with `use_sparse_embeddings`."""

    all_vectors: ClassVar[bool] = True


def whole(layout: Layout, vector_name: str | None) -> HaystackLayout:
    """The same layout, whose documents are `Whole`."""
    kind = HybridLayout if vector_name == DENSE_VECTORS_NAME else HaystackLayout
    return kind(**{each.name: getattr(layout, each.name) for each in fields(Layout)})


def _sparse(vector: Any) -> Mapping[str, Any] | None:
    sparse = vector.get(SPARSE_VECTORS_NAME) if isinstance(vector, Mapping) else None
    if sparse is None:
        return None
    return {"indices": list(sparse.indices), "values": list(sparse.values)}
