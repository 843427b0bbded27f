"""The lists that a search returns: what is missing in them, and what is left out of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from e2rank_rag.types import Hit


def has_no_direction(hit: Hit) -> bool:
    """Whether the vector in the store is zero or not finite."""
    return hit.embedding is None and hit.score == 0.0


def short_by(found: Sequence[Sequence[Hit]], asked: int, wanted: int) -> int:
    """How many more hits to ask for, so that `wanted` have a usable vector.

    Qdrant ranks NaN first.
    """
    full = (hits for hits in found if len(hits) == asked)
    return max((wanted - asked + sum(map(has_no_direction, hits)) for hits in full), default=0)


def most_excluded(queries: Sequence[str], exclude: Sequence[Collection[str]] | None) -> int:
    """How many more documents a search must ask for, so that enough are left."""
    if exclude is None:
        return 0
    if len(exclude) != len(queries):
        raise ValueError(f"{len(queries)} queries came with {len(exclude)} exclude lists")
    return max(map(len, exclude), default=0)


def without(
    found: list[list[Hit]],
    exclude: Sequence[Collection[str]] | None,
    depth: int | None = None,
) -> list[list[Hit]]:
    """Each ranking without its excluded documents, cut to `depth`."""
    if exclude is None:
        return found
    return [
        [hit for hit in hits if hit.document.id not in ids][:depth]
        for hits, ids in zip(found, exclude, strict=True)
    ]
