"""How a collection is laid out: its vectors, its record, and where the payload keeps a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qdrant_client import models

from e2rank_rag.errors import StoreError
from e2rank_rag.store.answers import Request, counted
from e2rank_rag.store.connection import Connection
from e2rank_rag.store.layout import LANGCHAIN_LAYOUT, Layout
from e2rank_rag.store.schema import METADATA_KEY, SCORED_AS_COSINES

Writer = Literal["e2rank_rag", "qdrant-haystack", "langchain-qdrant", "unknown"]
"""The tool whose layout the payload has."""

SHOWN_NAMES = 20
"""Names in an error message."""


@dataclass(frozen=True, slots=True)
class DenseVector:
    """A vector of a collection. name: None where it has no name."""

    name: str | None
    size: int
    distance: models.Distance
    several: bool

    @property
    def usable(self) -> bool:
        """Whether a store of this library can search it."""
        return self.distance in SCORED_AS_COSINES and not self.several


@dataclass(frozen=True, slots=True)
class Outline:
    """One collection, without its points.

    points: how many it has. sparse: name -> whether Qdrant multiplies by the idf of the words.
    record: what this library's stores keep in the collection's metadata, {} for others.
    """

    collection: str
    points: int
    vectors: tuple[DenseVector, ...]
    sparse: Mapping[str, bool] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def vector(self, name: str | None) -> DenseVector:
        """The vector of this name, or without a name the only one.

        ValueError if there is no such vector, or several and none was named.
        """
        names = [str(each.name) for each in self.vectors if each.name is not None]
        if name is None and len(self.vectors) == 1:
            return self.vectors[0]
        found = [each for each in self.vectors if each.name == name and name is not None]
        if found:
            return found[0]
        asked = "several vectors" if name is None else f"no vector {name!r}"
        raise ValueError(
            f"collection {self.collection!r} has {asked}: name one of {sorted(names) or 'none'}"
        )


def outline(connection: Connection, collection: str | None) -> Outline:
    """The outline of a collection; without a name, of the only one.

    StoreError if there is none, or several and none was named; CollectionMissing for another name.
    """
    name = _only(connection) if collection is None else collection
    info = connection.send(Request("get_collection", {"collection_name": name}, lambda each: each))
    count = {"collection_name": name, "exact": True}
    params = info.config.params
    dense = params.vectors or {}
    named = dense if isinstance(dense, Mapping) else {None: dense}
    metadata = getattr(info.config, "metadata", None) or {}
    record = metadata.get(METADATA_KEY)
    return Outline(
        collection=name,
        points=connection.send(Request("count", count, counted)),
        vectors=tuple(
            DenseVector(key or None, each.size, each.distance, each.multivector_config is not None)
            for key, each in named.items()
        ),
        sparse={
            key: each.modifier == models.Modifier.IDF
            for key, each in (params.sparse_vectors or {}).items()
        },
        record=record if isinstance(record, Mapping) else {},
    )


def _only(connection: Connection) -> str:
    names: list[str] = connection.send(
        Request("get_collections", {}, lambda answer: sorted(c.name for c in answer.collections))
    )
    if len(names) == 1:
        return names[0]
    if not names:
        raise StoreError(f"there is no collection {connection.where}: index documents first")
    shown = ", ".join(map(repr, names[:SHOWN_NAMES]))
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    raise StoreError(f"there are {len(names):,} collections {connection.where}: name {shown}{more}")


@dataclass(frozen=True, slots=True)
class FoundLayout:
    """Where the points keep a document.

    keys: the payload keys, most frequent first. guessed: whether `layout` only fits the payloads,
    because no tool is known that writes such keys.
    """

    writer: Writer
    layout: Layout
    keys: tuple[str, ...]

    @property
    def guessed(self) -> bool:
        """Whether the layout was chosen by what the payloads hold."""
        return self.writer == "unknown"


def found_layout(payloads: Sequence[Mapping[str, Any]]) -> FoundLayout:
    """The layout of points with these payloads; StoreError if none of their keys holds a text."""
    counts = Counter(key for payload in payloads for key in payload)
    keys = tuple(key for key, _ in counts.most_common())
    common = {key for key, count in counts.items() if count == len(payloads)}
    ours = Layout()
    if set(ours.keys) <= common:
        # Haystack's documents have further keys, such as blob and score.
        writer: Writer = "e2rank_rag" if set(keys) == set(ours.keys) else "qdrant-haystack"
        return FoundLayout(writer, ours, keys)
    if LANGCHAIN_LAYOUT.content_key in common:
        return FoundLayout("langchain-qdrant", LANGCHAIN_LAYOUT, keys)
    return FoundLayout("unknown", _fitting(payloads, keys), keys)


def _fitting(payloads: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Layout:
    """The longest text is the content, and the most frequent object is the meta."""
    lengths = {
        key: sum(len(p[key]) for p in payloads if isinstance(p.get(key), str)) for key in keys
    }
    content = max(lengths, key=lambda key: lengths[key], default=None)
    if content is None or not lengths[content]:
        raise StoreError(
            f"no payload key of these points holds a text (there are: {', '.join(keys) or 'none'}),"
            f" and without their texts nothing can say which model wrote the vectors"
        )
    objects = [key for key in keys if any(isinstance(p.get(key), dict) for p in payloads)]
    return Layout(id_key=None, content_key=content, metadata_key=next(iter(objects), "metadata"))
