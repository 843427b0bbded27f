"""Filters on their way to the store, and hits on their way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haystack import Document
from haystack.document_stores.types import FilterPolicy
from haystack.document_stores.types.filter_policy import apply_filter_policy
from haystack_integrations.components.rankers.e2rank._candidates import RETRIEVAL_SCORE
from haystack_integrations.components.rankers.e2rank._stores import (
    HAYSTACK_METADATA_KEY,
    Retrieved,
)
from qdrant_client import models

from e2rank_rag.types import Hit

Filters = dict[str, Any] | models.Filter | None


def chosen_filters(policy: FilterPolicy, at_init: Filters, at_run: Filters) -> Filters:
    """The filters of one run; ValueError where native ones would have to be merged."""
    native = isinstance(at_init, models.Filter) or isinstance(at_run, models.Filter)
    if policy == FilterPolicy.MERGE and native:
        raise ValueError(
            "Native Qdrant filters cannot be used with filter_policy set to MERGE: set it to "
            "REPLACE, or use Haystack filters"
        )
    chosen: Filters = apply_filter_policy(policy, at_init, at_run)  # type: ignore[arg-type]
    return chosen


def qdrant_filter(filters: Filters, metadata_key: str) -> models.Filter | None:
    """Haystack filters as Qdrant's, by the conversion of qdrant-haystack."""
    try:
        from haystack_integrations.document_stores.qdrant.filters import convert_filters_to_qdrant
    except ImportError as error:
        raise ImportError(
            "filters need qdrant-haystack: pip install 'e2rank-rag[haystack]'"
        ) from error
    if isinstance(filters, Mapping) and metadata_key != HAYSTACK_METADATA_KEY:
        filters = _renamed(filters, metadata_key)
    native: models.Filter | None = convert_filters_to_qdrant(filters)
    return native


def best_of_groups(hits: Iterable[Hit], field: str, size: int) -> list[Hit]:
    """The first `size` hits of each value of a meta field; hits without the field all stay."""
    counts: dict[Any, int] = {}
    kept = []
    for hit in hits:
        value = _at(hit.document.meta, field.removeprefix(f"{HAYSTACK_METADATA_KEY}.").split("."))
        if value is not None:
            group = repr(value)  # a list can be no key
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
    assert isinstance(document, Retrieved)
    embedding = hit.embedding if with_embedding else None
    return Document(
        id=document.id,
        content=document.content,
        meta={RETRIEVAL_SCORE: hit.retrieval_score, **document.meta},
        score=hit.score,
        embedding=None if embedding is None else embedding.tolist(),
    )


def _renamed(filters: Mapping[str, Any], metadata_key: str) -> dict[str, Any]:
    changed = dict(filters)
    if "conditions" in changed:
        changed["conditions"] = [_renamed(item, metadata_key) for item in changed["conditions"]]
    key, dot, rest = str(changed.get("field", "")).partition(".")
    if key == HAYSTACK_METADATA_KEY and dot:
        changed["field"] = f"{metadata_key}.{rest}"
    return changed


def _at(meta: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = meta
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
