"""A seeded sample of stored points: their texts, the fields beside them, and their vectors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2rank_rag.check.outline import DenseVector, FoundLayout, Outline, found_layout
from e2rank_rag.errors import StoreError
from e2rank_rag.store.answers import Request, batches
from e2rank_rag.store.connection import Connection
from e2rank_rag.store.layout import Layout
from e2rank_rag.store.vectors import unit_or_none
from e2rank_rag.types import Embeddings

DRAWN_IDS = 100_000
"""Points are drawn from so many ids at most, the first in Qdrant's order."""

POOL = 256
"""Points whose texts are read, to choose the sample from."""

IDS_PER_PAGE = 10_000
POINTS_PER_REQUEST = 64

FIELD_CHARACTERS = 400
"""A field with a longer value is not a title."""

MOST_FIELDS = 8
TITLES = ("title", "name", "headline", "heading", "subject", "section", "file_name")
"""Fields that are tried first."""


@dataclass(frozen=True, slots=True)
class StoredText:
    """A stored document with its vector.

    content: as it is stored. fields: what could stand before it, as text.
    beside: names of fields that are in the payload beside the meta.
    vector: unit length [dim]. length: of the vector as it is stored.
    sparse: name -> ids and weights of its sparse vectors.
    """

    id: str
    content: str
    fields: Mapping[str, str]
    vector: Embeddings
    length: float
    sparse: Mapping[str, Any]
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sample:
    """texts: what is compared. others: drawn too, and not compared. unusable: how many of the drawn
    points have no text or no usable vector. drawn_from: from how many points they were drawn."""

    layout: FoundLayout
    texts: tuple[StoredText, ...]
    others: tuple[StoredText, ...]
    unusable: int
    drawn_from: int

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that most of the compared texts have, the likeliest ones first: titles, then
        texts that differ, then numbers and what is the same everywhere."""
        values: dict[str, list[str]] = {}
        for text in self.texts:
            for name, value in text.fields.items():
                values.setdefault(name, []).append(value)
        there = [name for name, each in values.items() if 2 * len(each) >= len(self.texts)]
        rank = {name: place for place, name in enumerate(TITLES)}

        def unlikely(name: str) -> tuple[int, bool]:
            numbers = not any(char.isalpha() for value in values[name] for char in value)
            return rank.get(name, len(rank)), numbers or len(set(values[name])) == 1

        return tuple(sorted(there, key=unlikely)[:MOST_FIELDS])


def draw(
    connection: Connection, outline: Outline, vector: DenseVector, *, size: int, seed: int
) -> Sample:
    """Draw points, and choose `size` of them to compare: half are the longest texts drawn.

    Only long texts show where a model cut them. The others are chosen at random.

    StoreError if no drawn point has a text and a usable vector.
    """
    ids = _ids(connection, outline.collection)
    generator = random.Random(seed)
    drawn = generator.sample(ids, min(len(ids), max(POOL, size)))
    points = _points(connection, outline.collection, drawn)
    if not points:
        raise StoreError(f"collection {outline.collection!r} is empty: index documents first")
    layout = found_layout([point.payload or {} for point in points])
    found = [_stored(point, layout, vector.name) for point in points]
    usable = list({each.content: each for each in found if each is not None}.values())
    if not usable:
        raise StoreError(
            f"none of {len(points)} points of collection {outline.collection!r} has a text and a "
            f"vector that can be compared: index documents first"
        )
    by_length = sorted(usable, key=lambda each: -len(each.content))
    longest, rest = by_length[: size // 2], by_length[size // 2 :]
    chosen = generator.sample(rest, min(len(rest), size - len(longest)))
    kept = {each.id for each in (*longest, *chosen)}
    return Sample(
        layout=layout,
        texts=tuple(sorted((*longest, *chosen), key=lambda each: len(each.content))),
        others=tuple(each for each in usable if each.id not in kept),
        unusable=sum(each is None for each in found),
        drawn_from=len(ids),
    )


def _ids(connection: Connection, collection: str) -> list[Any]:
    ids: list[Any] = []
    offset: Any = None
    while len(ids) < DRAWN_IDS:
        arguments = {
            "collection_name": collection,
            "limit": IDS_PER_PAGE,
            "offset": offset,
            "with_payload": False,
            "with_vectors": False,
        }
        page, offset = connection.send(Request("scroll", arguments, lambda answer: answer))
        ids += [point.id for point in page]
        if offset is None:
            break
    return ids[:DRAWN_IDS]


def _points(connection: Connection, collection: str, ids: Sequence[Any]) -> list[Any]:
    points: list[Any] = []
    for batch in batches(ids, POINTS_PER_REQUEST):
        arguments = {
            "collection_name": collection,
            "ids": batch,
            "with_payload": True,
            "with_vectors": True,
        }
        points += connection.send(Request("retrieve", arguments, lambda answer: answer))
    return points


def _stored(point: Any, found: FoundLayout, name: str | None) -> StoredText | None:
    payload = point.payload or {}
    content = payload.get(found.layout.content_key)
    vectors = point.vector if isinstance(point.vector, Mapping) else {"": point.vector}
    stored = vectors.get(name or "")
    if not isinstance(content, str) or not content.strip() or not stored:
        return None
    vector = unit_or_none(stored)
    if vector is None:
        return None
    return StoredText(
        id=_id(point, found.layout),
        content=content,
        fields=fields_of(payload, found.layout),
        vector=vector,
        length=float(np.linalg.norm(np.asarray(stored, dtype=np.float64))),
        sparse={key: each for key, each in vectors.items() if hasattr(each, "indices")},
        beside=frozenset(payload) - frozenset(found.layout.keys),
    )


def _id(point: Any, layout: Layout) -> str:
    id = None if layout.id_key is None else (point.payload or {}).get(layout.id_key)
    return id if isinstance(id, str) else str(point.id)


def fields_of(payload: Mapping[str, Any], layout: Layout) -> dict[str, str]:
    """The values that could stand before a text: those of the meta, and others in the payload."""
    meta = payload.get(layout.metadata_key)
    beside = {key: value for key, value in payload.items() if key not in layout.keys}
    values = {**beside, **(meta if isinstance(meta, Mapping) else {})}
    return {
        str(key): str(value)
        for key, value in values.items()
        if isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and len(str(value)) <= FIELD_CHARACTERS
    }
