"""Converts documents between Haystack and the core: embedded text, hits, and points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import nan
from typing import Any

import numpy as np
from haystack import Document as HaystackDocument

from e2rank_rag.candidates import each_once
from e2rank_rag.store import Layout
from e2rank_rag.types import Document, Embeddings, Hit

DENSE_VECTORS_NAME = "text-dense"
SPARSE_VECTORS_NAME = "text-sparse"
RETRIEVAL_SCORE = "retrieval_score"
EXPLANATION = "explanation"


@dataclass(frozen=True)
class DocumentText:
    """How a document becomes the text that is embedded: prefix, meta fields, content, suffix.

    A field that is missing or None is left out; 0, False and "" are kept.
    """

    meta_fields: tuple[str, ...] = ()
    separator: str = "\n"
    prefix: str = ""
    suffix: str = ""

    def of(self, content: str | None, meta: Mapping[str, Any]) -> str:
        """The text of a document with this content and meta."""
        found = [str(meta[field]) for field in self.meta_fields if meta.get(field) is not None]
        return self.prefix + self.separator.join([*found, content or ""]) + self.suffix


@dataclass(frozen=True, slots=True)
class StoredHaystackDocument(Document):
    """A document with everything that Haystack keeps in its point. `text` is what was embedded.

    content: as it is stored; None where there is none.
    blob, sparse_embedding: as Haystack writes them.
    """

    content: str | None = None
    blob: Mapping[str, Any] | None = None
    sparse_embedding: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class HaystackLayout(Layout):
    """A layout that reads the whole document, with the text that was embedded.

    all_vectors: read the sparse vector too.
    """

    document_text: DocumentText = DocumentText()
    all_vectors: bool = False  # type: ignore[misc]

    @classmethod
    def over(
        cls, layout: Layout, document_text: DocumentText, vector_name: str | None
    ) -> HaystackLayout:
        """The same payload keys; a QdrantDocumentStore names vectors where it has sparse ones."""
        keys = {each.name: getattr(layout, each.name) for each in fields(Layout)}
        return cls(
            **keys, document_text=document_text, all_vectors=vector_name == DENSE_VECTORS_NAME
        )

    def document(self, point: Any) -> StoredHaystackDocument:
        """The document of a point with its payload; StoreError where the keys are not these."""
        stored = Layout.document(self, point)
        payload = point.payload or {}
        return StoredHaystackDocument(
            stored.id,
            self.document_text.of(stored.text, stored.meta),
            stored.meta,
            content=payload.get(self.content_key),
            blob=payload.get("blob"),
            # In the payload where the store was made without sparse vectors.
            sparse_embedding=_sparse(point.vector) or payload.get("sparse_embedding"),
        )


def _sparse(vector: Any) -> Mapping[str, Any] | None:
    sparse = vector.get(SPARSE_VECTORS_NAME) if isinstance(vector, Mapping) else None
    if sparse is None:
        return None
    return {"indices": list(sparse.indices), "values": list(sparse.values)}


def without_copies(documents: Sequence[HaystackDocument]) -> list[HaystackDocument]:
    """The documents without copies; among those with one id, the highest score is kept."""
    return each_once(documents, lambda document: document.id, lambda document: document.score)


def as_hit(document: HaystackDocument, document_text: DocumentText) -> Hit:
    """A candidate, with its vector where it has one."""
    text = document_text.of(document.content, document.meta)
    # Without a source: a joiner may have put together what several models embedded.
    return Hit(
        Document(document.id, text, document.meta),
        nan if document.score is None else document.score,
        _as_array(document.embedding),
    )


def as_document(hit: Hit, *, with_embedding: bool) -> HaystackDocument:
    """A hit that was read by a `HaystackLayout`."""
    document = hit.document
    assert isinstance(document, StoredHaystackDocument)
    vectors: dict[str, Any] = {}
    if with_embedding:
        vectors["embedding"] = None if hit.embedding is None else hit.embedding.tolist()
        vectors["sparse_embedding"] = document.sparse_embedding
    return HaystackDocument.from_dict(
        {
            "id": document.id,
            "content": document.content,
            "blob": document.blob,
            # A score that was stored with the document belongs to another query.
            "meta": {**document.meta, RETRIEVAL_SCORE: hit.retrieval_score, **_explained(hit)},
            "score": hit.score,
            **vectors,
        }
    )


def rescored(document: HaystackDocument, hit: Hit) -> HaystackDocument:
    """The document with its new score; the one before is in its meta."""
    before = {} if document.score is None else {RETRIEVAL_SCORE: document.score}
    meta = {**before, **document.meta, **_explained(hit)}
    return replace(document, score=hit.score, meta=meta)


def _explained(hit: Hit) -> dict[str, Any]:
    return {} if hit.explanation is None else {EXPLANATION: hit.explanation.as_dict()}


def _as_array(embedding: Any) -> Embeddings | None:
    if embedding is None:
        return None
    vector = np.asarray(embedding)
    return vector if vector.size else None
