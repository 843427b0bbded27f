"""The candidates of a query: a list in which each document appears once.

Several searches may retrieve the same document (hybrid search, several phrasings of a question).
Copies would take the places of other documents in a prompt and in a ranking, so every reranker
ranks a document once. Copies have the same id, so documents of two collections that are searched
together need different ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf, isnan, nan
from typing import TypeVar

from e2rank_rag.types import Document, Hit

C = TypeVar("C")

Candidates = Sequence[Hit] | Sequence[str]
"""Hits, or the texts of documents that have neither id nor score."""


def checked_lists(queries: Sequence[str], candidates: Sequence[Candidates]) -> list[list[Hit]]:
    """The hits of each query, every document once; ValueError unless each query has a list."""
    if len(queries) != len(candidates):
        raise ValueError(f"{len(queries)} queries came with {len(candidates)} candidate lists")
    return [without_copies(as_hits(each)) for each in candidates]


def as_hits(candidates: Candidates) -> list[Hit]:
    """Hits as they are; strings as documents with the ids "0", "1", ... and the score NaN.

    ValueError for a single string, and for a list of both hits and strings.
    """
    if isinstance(candidates, str):
        raise ValueError(f"candidates must be a list of hits or strings, got {candidates[:40]!r}")
    hits: list[Hit] = []
    texts: list[str] = []
    for each in candidates:
        texts.append(each) if isinstance(each, str) else hits.append(each)
    if hits and texts:
        raise ValueError(
            f"candidates must be all hits or all strings, got {len(hits)} and {len(texts)}"
        )
    return hits or [Hit(Document(str(place), text), nan) for place, text in enumerate(texts)]


def each_once(
    candidates: Iterable[C], id: Callable[[C], str], score: Callable[[C], float | None]
) -> list[C]:
    """One candidate for each id: the one with the highest score, at the place of the first.

    A missing score or NaN is below every other score; among equal scores the first one is kept.
    """
    best: dict[str, C] = {}
    for candidate in candidates:
        known = best.get(id(candidate))
        if known is None or _value(score(candidate)) > _value(score(known)):
            best[id(candidate)] = candidate
    return list(best.values())


def without_copies(hits: Sequence[Hit]) -> list[Hit]:
    """`each_once`; a hit without an embedding takes the one of a copy with the same text."""
    kept = each_once(hits, lambda hit: hit.document.id, lambda hit: hit.score)
    if len(kept) == len(hits):
        return kept
    known = {
        (hit.document.id, hit.document.text): hit
        for hit in reversed(hits)
        if hit.embedding is not None
    }
    return [_with_embedding(hit, known.get((hit.document.id, hit.document.text))) for hit in kept]


def _with_embedding(hit: Hit, copy: Hit | None) -> Hit:
    if hit.embedding is not None or copy is None:
        return hit
    return replace(hit, embedding=copy.embedding, source=copy.source, fingerprint=copy.fingerprint)


def _value(score: float | None) -> float:
    return -inf if score is None or isnan(score) else score
