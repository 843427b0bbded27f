"""Haystack documents to the core's hits, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from math import isclose
from typing import Any

import numpy as np
from haystack import Document as HaystackDocument
from haystack_integrations.components.rankers.e2rank._backend import DocumentText

from e2rank_rag.candidates import each_once
from e2rank_rag.types import Document, Embeddings, Hit, StoredDocument

RETRIEVAL_SCORE = "retrieval_score"

# Reciprocal rank fusion as Qdrant has it, 1 / (2 + rank), over two prefetches of its default 10.
_RANK_SHARES = [1 / (2 + rank) for rank in range(10)]
_FUSED_SCORES = sorted(
    [*_RANK_SHARES, *(sum(pair) for pair in combinations_with_replacement(_RANK_SHARES, 2))]
)


@dataclass(frozen=True)
class Fetched:
    """Vectors read from a store, by document id."""

    store: str
    vectors: Mapping[str, Embeddings]

    @classmethod
    def of_same_text(
        cls,
        store: str,
        stored: Mapping[str, StoredDocument],
        documents: Sequence[HaystackDocument],
        text: DocumentText,
    ) -> Fetched:
        """Of those documents only whose text, as it is embedded, is still the store's."""
        now = {document.id: text.of(document.content, document.meta) for document in documents}
        vectors = {
            id: known.embedding
            for id, known in stored.items()
            if known.embedding is not None
            and text.of(known.document.text, known.document.meta) == now[id]
        }
        return cls(store, vectors)


def unique(documents: Sequence[HaystackDocument]) -> list[HaystackDocument]:
    """Each id once, as every reranker here has it."""
    return each_once(documents, lambda document: document.id, lambda document: document.score)


def as_hits(
    documents: Sequence[HaystackDocument], fetched: Fetched, text: DocumentText
) -> tuple[list[Hit], list[Hit], list[Hit]]:
    """Hits with the vector they carry, with a fetched one, and without any."""
    carried, read, missing = [], [], []
    for document in documents:
        shown = Document(document.id, text.of(document.content, document.meta), document.meta)
        # Without a source, since a joiner may have put together what several models embedded.
        hit = Hit(shown, document.score or 0.0, _as_array(document.embedding))
        if hit.embedding is not None:
            carried.append(hit)
        elif document.id in fetched.vectors:
            vector = fetched.vectors[document.id]
            read.append(replace(hit, embedding=vector, source=fetched.store))
        else:
            missing.append(hit)
    return carried, read, missing


def reranked(
    hits: Sequence[Hit], documents: Sequence[HaystackDocument], threshold: float | None
) -> list[HaystackDocument]:
    """New documents in the order of the hits, without those that score below the threshold."""
    originals = {document.id: document for document in documents}
    return [
        _rescored(originals[hit.document.id], hit.score)
        for hit in hits
        if threshold is None or hit.score >= threshold
    ]


def was_fused_from_ten(scores: Sequence[float | None]) -> bool:
    """Whether these are more than 10 scores of a fusion of two searches for 10."""
    return len(scores) > 10 and all(
        score is not None and any(isclose(score, fused, rel_tol=1e-5) for fused in _FUSED_SCORES)
        for score in scores
    )


def _as_array(embedding: Any) -> Embeddings | None:
    if embedding is None:
        return None
    vector = np.asarray(embedding)
    return vector if vector.size else None


def _rescored(document: HaystackDocument, score: float) -> HaystackDocument:
    first = {} if document.score is None else {RETRIEVAL_SCORE: document.score}
    return replace(document, score=score, meta={**first, **document.meta})
