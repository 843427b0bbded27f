"""The candidates of a query: one list per query, in which a document stands once.

Several searches may retrieve a document (hybrid search, several phrasings of a question), and a
prompt or a ranking that shows it twice has less room for others. So every reranker here ranks a
document once: copies have the same id. Ids name documents: those of two collections that are
searched together must differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf, isnan
from typing import TypeVar

from e2rank_rag.types import Hit

C = TypeVar("C")


def checked_lists(queries: Sequence[str], candidates: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
    """The list of each query, every document in it once; ValueError unless each query has one."""
    if len(queries) != len(candidates):
        raise ValueError(f"{len(queries)} queries came with {len(candidates)} candidate lists")
    return [without_copies(hits) for hits in candidates]


def each_once(
    candidates: Iterable[C], id: Callable[[C], str], score: Callable[[C], float | None]
) -> list[C]:
    """Of the candidates with one id the one with the highest score, where the first of them stood.

    No score and NaN are below every other; of equal scores the first stays.
    """
    best: dict[str, C] = {}
    for candidate in candidates:
        known = best.get(id(candidate))
        if known is None or _value(score(candidate)) > _value(score(known)):
            best[id(candidate)] = candidate
    return list(best.values())


def without_copies(hits: Sequence[Hit]) -> list[Hit]:
    """`each_once`; a hit without its embedding takes that of a copy with the same text."""
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
    return replace(hit, embedding=copy.embedding, source=copy.source)


def _value(score: float | None) -> float:
    return -inf if score is None or isnan(score) else score
