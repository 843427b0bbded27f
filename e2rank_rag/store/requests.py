"""What QdrantStore asks of one collection: each request with the meaning of its answer.

Nothing here sends anything, so the synchronous and the async methods share all of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from qdrant_client import models

from e2rank_rag.errors import StoreError
from e2rank_rag.store.filters import to_qdrant_filter
from e2rank_rag.store.layout import Layout
from e2rank_rag.store.schema import Schema, read_schema
from e2rank_rag.store.vectors import one_row, stored_vector, unit_rows
from e2rank_rag.types import Document, Embeddings, Filter, Hit, StoredDocument

R = TypeVar("R")
T = TypeVar("T")
Points = list[Any]

POINTS_PER_REQUEST = 256
IDS_PER_REQUEST = 1000
# A server takes 32 MB, and slow links time out on far less.
BYTES_PER_REQUEST = 4_000_000
BYTES_PER_NUMBER = 20
# Of the vectors in one answer: some 20 MB of JSON.
NUMBERS_PER_ANSWER = 1_000_000


@dataclass(frozen=True, slots=True)
class Request(Generic[R]):
    """A method that QdrantClient and AsyncQdrantClient both have, its arguments, and what its
    answer means."""

    method: str
    arguments: Mapping[str, Any]
    parse: Callable[[Any], R]


@dataclass(frozen=True, slots=True)
class CollectionRequests:
    """Requests to one collection.

    name: as error messages name it. exact: whether `search_params` may be sent, which local mode
    answers with a warning.
    """

    collection: str
    name: str
    layout: Layout
    vector_name: str | None
    exact: bool

    def exists(self) -> Request[bool]:
        return self._request("collection_exists", {}, bool)

    def create(
        self, dim: int, metadata: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> Request[None]:
        vector = models.VectorParams(size=dim, distance=models.Distance.COSINE)
        vectors = vector if self.vector_name is None else {self.vector_name: vector}
        arguments = {"vectors_config": vectors, "metadata": metadata, **options}
        return self._request("create_collection", arguments, _nothing)

    def record(self, metadata: Mapping[str, Any]) -> Request[None]:
        return self._request("update_collection", {"metadata": dict(metadata)}, _nothing)

    def schema(self) -> Request[Schema]:
        parse = partial(read_schema, vector_name=self.vector_name, name=self.name)
        return self._request("get_collection", {}, parse)

    def check(self, documents: Sequence[Document]) -> None:
        """ValueError naming the document for what `upsert` cannot write, whatever its vector."""
        _unique_ids(documents)
        for document in documents:
            self.layout.payload(document)
            self.layout.point_id(document.id)

    def upsert(
        self, documents: Sequence[Document], embeddings: Embeddings, schema: Schema
    ) -> list[Request[None]]:
        """Everything is checked before the first request is handed out."""
        ids = _unique_ids(documents)
        payloads = [self.layout.payload(document) for document in documents]
        rows = unit_rows(embeddings, dim=schema.dim, labels=ids)
        sizes = [len(json.dumps(p)) + BYTES_PER_NUMBER * schema.dim for p in payloads]
        points = [
            models.PointStruct(
                id=self.layout.point_id(id), vector=self._named(row), payload=payload
            )
            for id, row, payload in zip(ids, rows.tolist(), payloads, strict=True)
        ]
        return [
            self._request("upsert", {"points": batch, "wait": True}, _nothing)
            for batch in _batches_by_size(points, sizes)
        ]

    def update_meta(self, documents: Sequence[Document]) -> list[Request[None]]:
        _unique_ids(documents)
        # Setting a top-level key of a payload replaces it as a whole; nothing is merged below it.
        operations = [
            models.SetPayloadOperation(
                set_payload=models.SetPayload(
                    payload={self.layout.metadata_key: self.layout.metadata(document)},
                    points=[self.layout.point_id(document.id)],
                )
            )
            for document in documents
        ]
        return [
            self._request(
                "batch_update_points", {"update_operations": batch, "wait": True}, _nothing
            )
            for batch in _batches(operations, POINTS_PER_REQUEST)
        ]

    def search(
        self,
        embeddings: Embeddings,
        *,
        top_k: int,
        filter: Filter | models.Filter | None,
        schema: Schema,
    ) -> list[Request[list[list[Hit]]]]:
        """One request for all rows, or a few where the answer would be large."""
        native = to_qdrant_filter(filter, self.layout.metadata_key)
        queries = [
            models.QueryRequest(
                query=row,
                using=self.vector_name,
                filter=native,
                limit=top_k,
                with_payload=True,
                with_vector=self._with_vectors(),
            )
            for row in unit_rows(embeddings, dim=schema.dim).tolist()
        ]
        at_once = max(1, NUMBERS_PER_ANSWER // (top_k * schema.dim))
        return [
            self._request(
                "query_batch_points",
                {"requests": batch},
                partial(self._rankings, queries=len(batch), top_k=top_k),
            )
            for batch in _batches(queries, at_once)
        ]

    def rescore(
        self, embedding: Embeddings, ids: Sequence[str], schema: Schema
    ) -> Request[list[Hit]]:
        points = list(dict.fromkeys(map(self.layout.point_id, ids)))
        arguments = {
            "query": unit_rows(one_row(embedding), dim=schema.dim)[0].tolist(),
            "using": self.vector_name,
            "query_filter": models.Filter(must=[models.HasIdCondition(has_id=points)]),
            "limit": len(points),
            "with_payload": True,
            "with_vectors": False,
        }
        if self.exact:
            # An approximate index might leave some of them out.
            arguments["search_params"] = models.SearchParams(exact=True)
        return self._request("query_points", arguments, partial(self._ranking, top_k=len(points)))

    def retrieve(
        self, ids: Sequence[str], *, vectors: bool = False, payload: bool = True
    ) -> list[Request[Points]]:
        points = list(dict.fromkeys(map(self.layout.point_id, ids)))
        options = {
            "with_payload": payload,
            "with_vectors": self._with_vectors() if vectors else False,
        }
        return [
            self._request("retrieve", {"ids": batch, **options}, list)
            for batch in _batches(points, POINTS_PER_REQUEST if vectors else IDS_PER_REQUEST)
        ]

    def stored(self, ids: Sequence[str], answers: Iterable[Points]) -> dict[str, StoredDocument]:
        """The answers to `retrieve`, under the ids that were asked for and in their order."""
        points = {str(point.id): point for points in answers for point in points}
        asked = {id: points.get(str(self.layout.point_id(id))) for id in ids}
        return {
            id: StoredDocument(
                self.layout.document(point), stored_vector(point.vector, self.vector_name)
            )
            for id, point in asked.items()
            if point is not None
        }

    def refuse_absent(self, documents: Sequence[Document], answers: Iterable[Points]) -> None:
        """StoreError naming the documents that the answers to `retrieve` do not hold."""
        there = {str(point.id) for points in answers for point in points}
        absent = [d.id for d in documents if str(self.layout.point_id(d.id)) not in there]
        if absent:
            raise StoreError(
                f"{len(absent)} of {len(documents)} documents are not in {self.name}, among them "
                f"{absent[:5]}: upsert them with their vectors; nothing was changed"
            )

    def scroll(self, offset: Any) -> Request[tuple[list[str], Any]]:
        """A page of document ids, and where the next one begins (None: nowhere)."""
        key = self.layout.id_key
        arguments = {
            "limit": IDS_PER_REQUEST,
            "offset": offset,
            "with_payload": False if key is None else [key],
            "with_vectors": False,
        }
        return self._request("scroll", arguments, partial(self._page, offset=offset))

    def delete(self, ids: Sequence[str]) -> list[Request[None]]:
        points = list(dict.fromkeys(map(self.layout.point_id, ids)))
        return [
            self._request(
                "delete",
                {"points_selector": models.PointIdsList(points=batch), "wait": True},
                _nothing,
            )
            for batch in _batches(points, IDS_PER_REQUEST)
        ]

    def count(self, filter: Filter | models.Filter | None) -> Request[int]:
        native = to_qdrant_filter(filter, self.layout.metadata_key)
        return self._request(
            "count", {"count_filter": native, "exact": True}, lambda answer: int(answer.count)
        )

    def _request(
        self, method: str, arguments: Mapping[str, Any], parse: Callable[[Any], T]
    ) -> Request[T]:
        return Request(method, {"collection_name": self.collection, **arguments}, parse)

    def _named(self, vector: list[float]) -> Any:
        return vector if self.vector_name is None else {self.vector_name: vector}

    def _with_vectors(self) -> bool | list[str]:
        return self.vector_name is None or self.layout.all_vectors or [self.vector_name]

    def _rankings(self, answers: Sequence[Any], *, queries: int, top_k: int) -> list[list[Hit]]:
        if len(answers) != queries:
            raise ValueError(f"{len(answers)} rankings for {queries} queries")
        return [self._ranking(answer, top_k=top_k) for answer in answers]

    def _ranking(self, answer: Any, *, top_k: int) -> list[Hit]:
        if len(answer.points) > top_k:
            raise ValueError(f"{len(answer.points)} points where {top_k} were asked for")
        return [
            Hit(
                self.layout.document(point),
                float(point.score),
                stored_vector(point.vector, self.vector_name),
                self.name,
            )
            for point in answer.points
        ]

    def _page(self, answer: tuple[Points, Any], *, offset: Any) -> tuple[list[str], Any]:
        points, following = answer
        if following is not None and (not points or following == offset):
            raise ValueError(f"a page of {len(points)} points which the same page follows")
        return [self.layout.document_id(point) for point in points], following


def _nothing(answer: Any) -> None:
    return None


def _unique_ids(documents: Sequence[Document]) -> list[str]:
    counts = Counter(document.id for document in documents)
    twice = [id for id, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"ids must differ within one call, and {twice[:5]} come more than once: keep one of "
            f"each"
        )
    return list(counts)


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _batches_by_size(points: Sequence[T], sizes: Sequence[int]) -> Iterator[list[T]]:
    batch: list[T] = []
    total = 0
    for point, size in zip(points, sizes, strict=True):
        if batch and (total + size > BYTES_PER_REQUEST or len(batch) == POINTS_PER_REQUEST):
            yield batch
            batch, total = [], 0
        batch.append(point)
        total += size
    if batch:
        yield batch
