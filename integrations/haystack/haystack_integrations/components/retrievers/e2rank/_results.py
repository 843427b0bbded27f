"""Hits on their way out: the best of each group, as Haystack documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haystack import Document
from haystack_integrations.components.rankers.e2rank._candidates import RETRIEVAL_SCORE
from haystack_integrations.components.rankers.e2rank._layout import Whole
from haystack_integrations.components.rankers.e2rank._stores import HAYSTACK_METADATA_KEY

from e2rank_rag.types import Hit


def best_of_groups(hits: Iterable[Hit], field: str, size: int) -> list[Hit]:
    """The first `size` hits of each value of a meta field; hits without the field all stay."""
    counts: dict[Any, int] = {}
    kept = []
    for hit in hits:
        value = _at(hit.document.meta, field.removeprefix(f"{HAYSTACK_METADATA_KEY}.").split("."))
        if value is not None:
            # 3 and 3.0 are one group, as one filter finds both; a list can be no key.
            group = value if type(value) in (int, float) else repr(value)
            counts[group] = counts.get(group, 0) + 1
            if counts[group] > size:
                continue
        kept.append(hit)
    return kept


def as_documents(hits: Sequence[Hit], *, with_embedding: bool) -> list[Document]:
    """Hits of a `Searched` store as Haystack documents."""
    return [_as_document(hit, with_embedding) for hit in hits]


def _as_document(hit: Hit, with_embedding: bool) -> Document:
    document = hit.document
    assert isinstance(document, Whole)
    vectors: dict[str, Any] = {}
    if with_embedding:
        vectors["embedding"] = None if hit.embedding is None else hit.embedding.tolist()
        vectors["sparse_embedding"] = document.sparse_embedding
    return Document.from_dict(
        {
            "id": document.id,
            "content": document.content,
            "blob": document.blob,
            # A score that was stored with the document is of another query.
            "meta": {**document.meta, RETRIEVAL_SCORE: hit.retrieval_score},
            "score": hit.score,
            **vectors,
        }
    )


def _at(meta: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = meta
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
