"""Requests to one collection that make it, write documents, and read them by id.

Nothing here sends a request, so synchronous and async methods share all of it.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from qdrant_client import models

from e2rank_rag.errors import StoreError
from e2rank_rag.store.answers import (
    Points,
    Request,
    all_written,
    asked_for,
    batches,
    counted,
    done,
    others,
    written,
)
from e2rank_rag.store.filters import to_qdrant_filter
from e2rank_rag.store.layout import Layout
from e2rank_rag.store.schema import Schema, read_schema
from e2rank_rag.store.sparse import SparseWords, as_qdrant, words_in
from e2rank_rag.store.vectors import stored_vector, unit_rows
from e2rank_rag.types import Document, Embeddings, Filter, StoredDocument

logger = logging.getLogger(__name__)

T = TypeVar("T")

POINTS_PER_REQUEST = 256
IDS_PER_REQUEST = 1000
# Other tools may keep one vector per token.
OTHER_VECTORS_PER_REQUEST = 32
BYTES_PER_NUMBER = 20
BYTES_PER_OPERATION = 100


@dataclass(frozen=True, slots=True)
class CollectionRequests:
    """Requests to one collection.

    name: the collection's name in error messages. exact: whether `search_params` may be sent; local
    mode answers them with a warning. words: what the caller says of the sparse vector.
    """

    collection: str
    name: str
    layout: Layout
    vector_name: str | None
    exact: bool
    words: SparseWords | None = None

    def exists(self) -> Request[bool]:
        """Whether the collection exists."""
        return self._request("collection_exists", {}, bool)

    def create(
        self, dim: int, metadata: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> Request[None]:
        """Create the collection with vectors of this dimension and these Qdrant options."""
        vector = models.VectorParams(size=dim, distance=models.Distance.COSINE)
        vectors = vector if self.vector_name is None else {self.vector_name: vector}
        arguments = {"vectors_config": vectors, "metadata": metadata, **options}
        if self.words is not None:
            key = "sparse_vectors_config"
            arguments[key] = self.words.config(options.get(key))
        return self._request("create_collection", arguments, done)

    def sparse_names(self) -> Request[list[str]]:
        """The names of the collection's sparse vectors."""
        return self._request(
            "get_collection", {}, lambda info: sorted(info.config.params.sparse_vectors or {})
        )

    def add_words(self) -> Request[None]:
        """Add the sparse vector of words, which no document has yet."""
        assert self.words is not None
        if not hasattr(models, "SparseVectorNameConfig"):
            raise StoreError(
                f"{self.name}: this qdrant-client cannot add a vector to a collection: install "
                f"1.18 or newer, or index into another collection"
            )
        sparse = models.SparseVectorConfig(modifier=models.Modifier.IDF)
        arguments = {
            "vector_name": self.words.vector_name,
            "vector_name_config": models.SparseVectorNameConfig(sparse=sparse),
        }
        return self._request("create_vector_name", arguments, written)

    def record(self, metadata: Mapping[str, Any]) -> Request[None]:
        """Replace the collection's metadata."""
        return self._request("update_collection", {"metadata": dict(metadata)}, done)

    def schema(self) -> Request[Schema]:
        """The schema that the collection has now."""
        parse = partial(read_schema, vector_name=self.vector_name, words=self.words, name=self.name)
        return self._request("get_collection", {}, parse)

    def check(self, documents: Sequence[Document]) -> None:
        """ValueError, naming the document, for a document that `upsert` cannot write."""
        _unique_ids(documents)
        for document in documents:
            self.layout.payload(document)
            self.layout.point_id(document.id)

    def points(
        self, documents: Sequence[Document], embeddings: Embeddings, schema: Schema
    ) -> list[models.PointStruct]:
        """Documents as points, after checking all of them."""
        ids = _unique_ids(documents)
        payloads = [self.layout.payload(document) for document in documents]
        rows = unit_rows(embeddings, dim=schema.dim, labels=ids)
        vectors = self._vectors(rows.tolist(), documents, schema)
        return [
            models.PointStruct(id=self.layout.point_id(id), vector=vector, payload=payload)
            for id, vector, payload in zip(ids, vectors, payloads, strict=True)
        ]

    def kept(self, points: Sequence[models.PointStruct], schema: Schema) -> list[Request[Points]]:
        """Requests for the other vectors of these points and their payload under other keys."""
        ours = [_as_path(key) for key in self.layout.keys]
        options = {
            "with_payload": models.PayloadSelectorExclude(exclude=ours),
            "with_vectors": list(schema.other_vectors) or False,
        }
        at_most = OTHER_VECTORS_PER_REQUEST if schema.other_vectors else POINTS_PER_REQUEST
        return [
            self._request("retrieve", {"ids": batch, **options}, partial(others, ids=batch))
            for batch in batches([point.id for point in points], at_most)
        ]

    def upsert(
        self, points: Sequence[models.PointStruct], kept: Iterable[Points]
    ) -> list[Request[None]]:
        """`kept`: the answers to the requests of that name."""
        known = {str(point.id): point for points in kept for point in points}
        ours = self.layout.keys
        sizes = []
        for point in points:
            size = len(json.dumps(point.payload)) + BYTES_PER_NUMBER * _numbers(point.vector)
            theirs = known.get(str(point.id))
            if theirs is not None:
                size += len(repr(theirs.payload)) + len(repr(theirs.vector))
                payload = {k: v for k, v in (theirs.payload or {}).items() if k not in ours}
                point.payload = {**payload, **(point.payload or {})}
                if theirs.vector:
                    point.vector = {**theirs.vector, **_by_name(point.vector)}
            sizes.append(size)
        return [
            self._request("upsert", {"points": batch, "wait": True}, written)
            for batch in batches(points, POINTS_PER_REQUEST, sizes)
        ]

    def update_meta(self, documents: Sequence[Document]) -> list[Request[None]]:
        """Replace the meta of these documents, in batches."""
        _unique_ids(documents)
        # Setting a top-level key of a payload replaces it as a whole; nothing is merged below it.
        payloads = [{self.layout.metadata_key: self.layout.metadata(d)} for d in documents]
        operations = [
            models.SetPayloadOperation(
                set_payload=models.SetPayload(
                    payload=payload, points=[self.layout.point_id(document.id)]
                )
            )
            for document, payload in zip(documents, payloads, strict=True)
        ]
        sizes = [len(json.dumps(payload)) + BYTES_PER_OPERATION for payload in payloads]
        return [
            self._request(
                "batch_update_points",
                {"update_operations": batch, "wait": True},
                partial(all_written, count=len(batch)),
            )
            for batch in batches(operations, POINTS_PER_REQUEST, sizes)
        ]

    def write_words(self, documents: Sequence[Document], schema: Schema) -> list[Request[int]]:
        """Replace the sparse vectors of those documents that have words, and count them."""
        words = words_in(schema.words, self.name)
        vectors = words.bm25.documents([document.text for document in documents])
        points = [
            models.PointVectors(
                id=self.layout.point_id(document.id), vector={words.vector_name: as_qdrant(vector)}
            )
            for document, vector in zip(documents, vectors, strict=True)
            if vector.indices
        ]
        sizes = [BYTES_PER_NUMBER * _numbers(p.vector) + BYTES_PER_OPERATION for p in points]
        return [
            self._request(
                "update_vectors",
                {"points": batch, "wait": True},
                partial(_written_count, count=len(batch)),
            )
            for batch in batches(points, POINTS_PER_REQUEST, sizes)
        ]

    def retrieve(
        self, ids: Sequence[str], *, vectors: bool = False, payload: bool = True
    ) -> list[Request[Points]]:
        """The points of these ids, each once, in batches."""
        points = list(dict.fromkeys(map(self.layout.point_id, ids)))
        options = {
            "with_payload": payload,
            "with_vectors": self._with_vectors() if vectors else False,
        }
        return [
            self._request("retrieve", {"ids": batch, **options}, partial(asked_for, ids=batch))
            for batch in batches(
                points, POINTS_PER_REQUEST if vectors or payload else IDS_PER_REQUEST
            )
        ]

    def stored(
        self, ids: Sequence[str], answers: Iterable[Points], schema: Schema | None
    ) -> dict[str, StoredDocument]:
        """The answers to `retrieve`, by the requested ids and in their order."""
        fingerprint = None if schema is None else schema.fingerprint
        points = {str(point.id): point for points in answers for point in points}
        asked = {id: points.get(str(self.layout.point_id(id))) for id in ids}
        return {
            id: StoredDocument(self.layout.document(point), self._vector(point), fingerprint)
            for id, point in asked.items()
            if point is not None
        }

    def refuse_absent(self, documents: Sequence[Document], answers: Iterable[Points]) -> None:
        """StoreError, naming the documents that the answers to `retrieve` lack."""
        there = {str(point.id) for points in answers for point in points}
        absent = [d.id for d in documents if str(self.layout.point_id(d.id)) not in there]
        if absent:
            raise StoreError(
                f"{len(absent)} of {len(documents)} documents are not in {self.name}, among them "
                f"{absent[:5]}: upsert them with their vectors; nothing was changed"
            )

    def scroll(
        self, offset: Any, *, lacking: SparseWords | None = None
    ) -> Request[tuple[list[str], Any]]:
        """A page of document ids, and the offset of the next page (None: this is the last one).

        lacking: only documents without this sparse vector.
        """
        key = self.layout.id_key
        arguments = {
            "limit": IDS_PER_REQUEST,
            "offset": offset,
            "with_payload": False if key is None else [key],
            "with_vectors": False,
        }
        if lacking is not None:
            arguments["scroll_filter"] = models.Filter(must_not=[lacking.filter])
        return self._request("scroll", arguments, partial(self._page, offset=offset))

    def delete(self, ids: Sequence[str]) -> list[Request[None]]:
        """Delete the points of these ids, in batches."""
        points = list(dict.fromkeys(map(self.layout.point_id, ids)))
        return [
            self._request(
                "delete",
                {"points_selector": models.PointIdsList(points=batch), "wait": True},
                written,
            )
            for batch in batches(points, IDS_PER_REQUEST)
        ]

    def count(self, filter: Filter | models.Filter | None) -> Request[int]:
        """Count the documents that match the filter, exactly."""
        native = to_qdrant_filter(filter, self.layout.metadata_key)
        return self._request("count", {"count_filter": native, "exact": True}, counted)

    def _request(
        self, method: str, arguments: Mapping[str, Any], parse: Callable[[Any], T]
    ) -> Request[T]:
        return Request(method, {"collection_name": self.collection, **arguments}, parse)

    def _vectors(
        self, rows: Sequence[list[float]], documents: Sequence[Document], schema: Schema
    ) -> list[Any]:
        """The vectors of each point; a text without words has no sparse one."""
        name, words = self.vector_name, schema.words
        if words is None:
            return [row if name is None else {name: row} for row in rows]
        sparse = words.bm25.documents([document.text for document in documents])
        return [
            {name or "": row, **({words.vector_name: as_qdrant(s)} if s.indices else {})}
            for row, s in zip(rows, sparse, strict=True)
        ]

    def _with_vectors(self, schema: Schema | None = None) -> bool | list[str]:
        if self.layout.all_vectors:
            return True
        if self.vector_name is None:
            # The sparse vectors of 100 hits can be larger than their dense ones.
            return [""] if schema is not None and schema.words is not None else True
        return [self.vector_name]

    def _vector(self, point: Any) -> Embeddings | None:
        if not point.vector:
            return None
        vector = stored_vector(point.vector, self.vector_name)
        if vector is None and self._named_part(point.vector) is not None:
            logger.warning(
                "the vector of document %r in %s is zero or not finite, so its cosine is 0: "
                "index the document again",
                self.layout.document_id(point),
                self.name,
            )
        return vector

    def _named_part(self, vector: Any) -> Any:
        return vector.get(self.vector_name or "") if isinstance(vector, dict) else vector

    def _page(self, answer: tuple[Points, Any], *, offset: Any) -> tuple[list[str], Any]:
        points, following = answer
        if following is not None and (not points or following == offset):
            raise ValueError(f"a page of {len(points)} points which the same page follows")
        return [self.layout.document_id(point) for point in points], following


def _unique_ids(documents: Sequence[Document]) -> list[str]:
    counts = Counter(document.id for document in documents)
    twice = [id for id, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"ids must differ within one call, and {twice[:5]} come more than once: keep one of "
            f"each"
        )
    return list(counts)


def _written_count(answer: Any, *, count: int) -> int:
    written(answer)
    return count


def _numbers(vector: Any) -> int:
    """How many numbers a point's vectors have."""
    vectors = _by_name(vector).values()
    return sum(
        2 * len(each.indices) if isinstance(each, models.SparseVector) else len(each)
        for each in vectors
    )


def _by_name(vector: Any) -> dict[str, Any]:
    return vector if isinstance(vector, dict) else {"": vector}


def _as_path(key: str) -> str:
    """A payload key in Qdrant's path syntax."""
    return key if re.fullmatch(r"[\w-]+", key) else f'"{key}"'
