"""Requests that search one collection, by vector, by words or by both, and their rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, get_args

from qdrant_client import models

from e2rank_rag.errors import StoreError
from e2rank_rag.store.answers import Request, asked_for, batches, each_once
from e2rank_rag.store.filters import to_qdrant_filter
from e2rank_rag.store.requests import BYTES_PER_NUMBER, IDS_PER_REQUEST, CollectionRequests
from e2rank_rag.store.schema import Schema
from e2rank_rag.store.sparse import SparseWords, as_qdrant, query_vectors
from e2rank_rag.store.vectors import one_row, unit_rows
from e2rank_rag.types import Embeddings, Filter, Fusion, Hit
from e2rank_rag.words import SparseVector

# Vectors in one answer, about 20 MB of JSON.
NUMBERS_PER_ANSWER = 1_000_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every query of one call asks for."""

    top_k: int
    filter: models.Filter | None
    schema: Schema


@dataclass(frozen=True, slots=True)
class SearchRequests(CollectionRequests):
    """Searches of one collection, beside the requests to it."""

    def wanted(self, top_k: int, filter: Filter | models.Filter | None, schema: Schema) -> Wanted:
        """What every query of one call asks for; ValueError for `top_k` below 1."""
        if top_k < 1:
            raise ValueError(f"top_k must be > 0, got {top_k}")
        return Wanted(top_k, to_qdrant_filter(filter, self.layout.metadata_key), schema)

    def search(
        self,
        embeddings: Embeddings,
        wanted: Wanted,
        *,
        queries: Sequence[str] | None = None,
        fusion: Fusion = "rrf",
    ) -> list[Request[list[list[Hit]]]]:
        """One request for all rows, or a few if the answer would be large.

        queries: the text of each row, which makes it a hybrid search.
        """
        schema = wanted.schema
        rows = unit_rows(embeddings, dim=schema.dim)
        words = self._sparse(len(rows), queries, fusion, schema)
        asked = [
            self._dense(row, wanted)
            if schema.words is None or not sparse.indices
            else self._hybrid(row, sparse, schema.words, fusion, wanted)
            for row, sparse in zip(rows.tolist(), words, strict=True)
        ]
        # A fused score is Qdrant's own.
        scored_with = [
            row if schema.scored_by_dot and not query.prefetch else None
            for row, query in zip(rows, asked, strict=True)
        ]
        longest = max((len(sparse.indices) for sparse in words), default=0)
        numbers, fused = schema.dim + 2 * longest, fusion == "dbsf" and longest > 0
        return self._batched(asked, scored_with, numbers, wanted, fused=fused)

    def words_of(self, queries: Sequence[str], schema: Schema) -> list[SparseVector]:
        """The sparse vector of each query; StoreError where the collection has no words."""
        return query_vectors(schema.words, queries, self.name)

    def search_words(
        self, vectors: Sequence[SparseVector], wanted: Wanted
    ) -> list[Request[list[list[Hit]]]]:
        """Like `search`, for sparse vectors that are not empty."""
        assert wanted.schema.words is not None
        using = wanted.schema.words.vector_name
        asked = [self._query(as_qdrant(vector), using, wanted) for vector in vectors]
        longest = max((len(vector.indices) for vector in vectors), default=0)
        return self._batched(asked, [None] * len(asked), 2 * longest, wanted)

    def rescore(
        self, embedding: Embeddings, ids: Sequence[str], schema: Schema
    ) -> list[Request[list[Hit]]]:
        """Score these documents against a vector [dim], in batches; each is ranked by itself."""
        points = list(dict.fromkeys(map(self.layout.point_id, ids)))
        row = unit_rows(one_row(embedding), dim=schema.dim)[0]
        arguments = {
            "query": row.tolist(),
            "using": self.vector_name,
            "with_payload": True,
            "with_vectors": self._with_vectors(schema) if schema.scored_by_dot else False,
        }
        if self.exact:
            # An approximate index might miss some of these ids.
            arguments["search_params"] = models.SearchParams(exact=True)
        row_or_none = row if schema.scored_by_dot else None
        return [
            self._request(
                "query_points",
                {
                    **arguments,
                    "query_filter": models.Filter(must=[models.HasIdCondition(has_id=batch)]),
                    "limit": len(batch),
                },
                partial(self._ranking, row=row_or_none, top_k=len(batch), ids=batch),
            )
            for batch in batches(points, IDS_PER_REQUEST)
        ]

    def _sparse(
        self, rows: int, queries: Sequence[str] | None, fusion: Fusion, schema: Schema
    ) -> list[SparseVector]:
        """The sparse vector of each row; empty ones without queries."""
        if fusion not in get_args(Fusion):
            raise ValueError(f"fusion must be one of {get_args(Fusion)}, got {fusion!r}")
        if queries is None:
            return [SparseVector([], [])] * rows
        vectors = self.words_of(queries, schema)
        if len(vectors) != rows:
            raise ValueError(f"{len(vectors)} queries came with {rows} embeddings")
        return vectors

    def _dense(self, row: list[float], wanted: Wanted) -> models.QueryRequest:
        return self._query(row, self.vector_name, wanted)

    def _query(self, vector: Any, using: str | None, wanted: Wanted) -> models.QueryRequest:
        return models.QueryRequest(
            query=vector,
            using=using,
            filter=wanted.filter,
            limit=wanted.top_k,
            with_payload=True,
            with_vector=self._with_vectors(wanted.schema),
        )

    def _hybrid(
        self,
        row: list[float],
        sparse: SparseVector,
        words: SparseWords,
        fusion: Fusion,
        wanted: Wanted,
    ) -> models.QueryRequest:
        both = ((row, self.vector_name), (as_qdrant(sparse), words.vector_name))
        return models.QueryRequest(
            # Without a limit Qdrant would fuse the first 10 of each.
            prefetch=[
                models.Prefetch(query=vector, using=using, filter=wanted.filter, limit=wanted.top_k)
                for vector, using in both
            ],
            query=models.FusionQuery(fusion=models.Fusion(fusion)),
            limit=wanted.top_k,
            with_payload=True,
            with_vector=self._with_vectors(wanted.schema),
        )

    def _batched(
        self,
        asked: Sequence[models.QueryRequest],
        scored_with: Sequence[Embeddings | None],
        numbers: int,
        wanted: Wanted,
        *,
        fused: bool = False,
    ) -> list[Request[list[list[Hit]]]]:
        """numbers: the most that one query sends."""
        schema, native = wanted.schema, wanted.filter
        at_once = max(1, NUMBERS_PER_ANSWER // (wanted.top_k * schema.dim))
        size = BYTES_PER_NUMBER * numbers + (2 * len(native.model_dump_json()) if native else 0)
        requests, start = [], 0
        for batch in batches(asked, at_once, [size] * len(asked)):
            parse = partial(
                self._rankings,
                rows=scored_with[start : start + len(batch)],
                top_k=wanted.top_k,
                fingerprint=schema.fingerprint,
                fused=fused,
            )
            requests.append(self._request("query_batch_points", {"requests": batch}, parse))
            start += len(batch)
        return requests

    def _rankings(
        self, answers: Sequence[Any], *, rows: Sequence[Embeddings | None], **options: Any
    ) -> list[list[Hit]]:
        if len(answers) != len(rows):
            raise ValueError(f"{len(answers)} rankings for {len(rows)} queries")
        return [
            self._ranking(answer, row=row, **options)
            for answer, row in zip(answers, rows, strict=True)
        ]

    def _ranking(
        self,
        answer: Any,
        *,
        row: Embeddings | None,
        top_k: int,
        ids: Sequence[Any] | None = None,
        fingerprint: str | None = None,
        fused: bool = False,
    ) -> list[Hit]:
        """row: a vector to score the stored vectors with, instead of Qdrant's scores. ids: the only
        points that the answer may hold; None: any. fused: whether one NaN spoils all scores."""
        if len(answer.points) > top_k:
            raise ValueError(f"{len(answer.points)} points where {top_k} were asked for")
        points = each_once(answer.points) if ids is None else asked_for(answer.points, ids=ids)
        if fused and not all(isfinite(point.score) for point in points):
            raise StoreError(
                f"{self.name} holds a vector that is not finite, so scores cannot be scaled by "
                f"their mean: search with fusion='rrf', or index its document again"
            )
        hits = [self._hit(point, row, fingerprint) for point in points]
        # Local mode ranks a vector of NaN first.
        return sorted(hits, key=lambda hit: -hit.score)

    def _hit(self, point: Any, row: Embeddings | None, fingerprint: str | None) -> Hit:
        vector, score = self._vector(point), float(point.score)
        if row is not None:
            score = 0.0 if vector is None else float(row @ vector)
        return Hit(
            self.layout.document(point),
            score if isfinite(score) else 0.0,
            vector,
            self.name,
            fingerprint=fingerprint,
        )
