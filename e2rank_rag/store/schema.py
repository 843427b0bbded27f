"""The schema of a collection, and whether a model's vectors fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any

from qdrant_client import models

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.store.sparse import BM25_KEY, SparseWords, read_words

METADATA_KEY = "e2rank"
SCORED_AS_COSINES = (models.Distance.COSINE, models.Distance.DOT)


@dataclass(frozen=True, slots=True)
class Schema:
    """One dense vector of a collection; fingerprint and model are None if they were not recorded.

    other_vectors: names of the other vectors, dense and sparse, that points may have.
    words: the sparse vector that holds the words of the documents, if any.
    """

    dim: int
    fingerprint: str | None = None
    model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    distance: models.Distance = models.Distance.COSINE
    other_vectors: tuple[str, ...] = ()
    words: SparseWords | None = None

    @property
    def scored_by_dot(self) -> bool:
        """Whether Qdrant's scores are dot products, which the vectors' lengths change."""
        return self.distance == models.Distance.DOT

    def check_dim(self, dim: int, name: str) -> None:
        """StoreError that names the collection if its vectors have another dimension."""
        if dim != self.dim:
            raise StoreError(
                f"{name} holds vectors of {self.dim} dimensions, these have {dim}: use the model "
                f"that wrote it, or another collection name"
            )

    def check_fingerprint(self, fingerprint: str | None, model: str | None, name: str) -> None:
        """StoredVectorMismatch if both fingerprints are known and differ."""
        if fingerprint is None or self.fingerprint in (None, fingerprint):
            return
        raise StoredVectorMismatch(
            f"{name} was written by {_called(self.model)} (fingerprint {self.fingerprint}), not by "
            f"{_called(model)} (fingerprint {fingerprint}): use the model that wrote it with the "
            f"same prompts and lengths, or another collection name"
        )

    @property
    def words_recorded(self) -> bool:
        """Whether the record says which words the sparse vector holds."""
        return BM25_KEY in self.metadata.get(METADATA_KEY, {})

    def with_record(self, fingerprint: str | None, model: str | None) -> dict[str, Any]:
        """The collection's metadata with this record; other tools' entries stay.

        Without a fingerprint the recorded one stays.
        """
        if fingerprint is None:
            fingerprint, model = self.fingerprint, self.model
        record: dict[str, Any] = {"fingerprint": fingerprint, "model": model, "dim": self.dim}
        if self.words is not None:
            record |= self.words.record()
        return {**self.metadata, METADATA_KEY: record}


def read_schema(
    info: models.CollectionInfo, *, vector_name: str | None, words: SparseWords | None, name: str
) -> Schema:
    """The schema of a collection; StoreError if it has no vector to compute cosines with.

    words: what the caller says of its sparse vector; see `sparse.read_words`.
    """
    params = _vector_params(info.config.params, vector_name, name)
    if params.size < 1:
        raise StoreError(f"{name} says that its vectors have {params.size} dimensions")
    if params.multivector_config is not None:
        raise StoreError(
            f"{name} keeps several vectors per document{_under(vector_name)} (multivector), and "
            f"one per document is needed: name another vector with vector_name=, or index into "
            f"another collection"
        )
    if params.distance not in SCORED_AS_COSINES:
        raise StoreError(
            f"{name} compares by {params.distance.value}, and scores here are cosines: create it "
            f"with distance Cosine, or index into another collection"
        )
    metadata = getattr(info.config, "metadata", None) or {}
    record = _checked_record(metadata.get(METADATA_KEY, {}), params.size, name)
    sparse = info.config.params.sparse_vectors or {}
    words = read_words(record, sparse, words, name)
    return Schema(
        dim=params.size,
        fingerprint=record.get("fingerprint"),
        model=record.get("model"),
        metadata=metadata,
        distance=params.distance,
        other_vectors=_other_vectors(info.config.params, vector_name, words),
        words=words,
    )


def _checked_record(record: Any, dim: int, name: str) -> Mapping[str, Any]:
    right = isinstance(record, Mapping) and all(
        isinstance(record.get(key), str | None) for key in ("fingerprint", "model")
    )
    if not right or record.get("dim", dim) != dim:
        raise StoreError(
            f"{name} has vectors of {dim} dimensions, and the record of the model that wrote them "
            f"is damaged: {str(record)[:200]}. Restore the collection from a copy, or index again"
        )
    return record  # type: ignore[no-any-return]


def _vector_params(params: Any, vector_name: str | None, name: str) -> models.VectorParams:
    vectors = params.vectors
    if not vectors:
        raise StoreError(
            f"{name} has no dense vectors (sparse ones: {sorted(params.sparse_vectors or {})}): "
            f"index into another collection"
        )
    if isinstance(vectors, models.VectorParams):
        if vector_name:
            raise StoreError(
                f"{name} has one vector without a name, not {vector_name!r}: leave vector_name out"
            )
        return vectors
    found: models.VectorParams | None = vectors.get(vector_name or "")
    if found is None:
        asked = "its vectors have names" if not vector_name else f"it has no {vector_name!r}"
        raise StoreError(f"{name}: {asked}; give vector_name= one of {sorted(vectors)}")
    return found


def _other_vectors(
    params: Any, vector_name: str | None, words: SparseWords | None
) -> tuple[str, ...]:
    dense = params.vectors if isinstance(params.vectors, Mapping) else {}
    ours = {vector_name or "", "" if words is None else words.vector_name}
    return tuple(sorted({*dense, *(params.sparse_vectors or {})} - ours))


def _called(model: str | None) -> str:
    return "a model without a recorded name" if model is None else repr(model)


def _under(vector_name: str | None) -> str:
    return f" under {vector_name!r}" if vector_name else ""


SCHEMA_AGE_S = 2.0
"""Seconds for which a store remembers the schema of a server's collection. An alias can switch, and
a collection can be deleted and made again. In local mode the schema is read for every call."""


class KnownSchema:
    """The schema that a store read last, and the one that `prepare` accepted.

    A copy or a pickle keeps only what `prepare` accepted.
    """

    def __init__(self) -> None:
        self._schema: Schema | None = None
        self._read_at = -inf
        self._agreed: tuple[str | None, Schema] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_schema": None}

    def fresh(self) -> Schema | None:
        """The schema, if it was read in the last `SCHEMA_AGE_S` seconds."""
        return self._schema if monotonic() - self._read_at <= SCHEMA_AGE_S else None

    def remember(self, schema: Schema) -> Schema:
        """Keep a schema that was read just now."""
        self._schema, self._read_at = schema, monotonic()
        return schema

    def agree(self, fingerprint: str | None, schema: Schema) -> None:
        """Keep what `prepare` accepted: its argument, and the schema after it."""
        self._agreed = fingerprint, self.remember(schema)

    def as_agreed(self, schema: Schema, name: str) -> Schema:
        """The schema read just now; StoredVectorMismatch if `prepare` accepted another model's."""
        self.remember(schema)
        if self._agreed is None:
            return schema
        asked, prepared = self._agreed
        schema.check_dim(prepared.dim, name)
        if prepared.words is not None and schema.words != prepared.words:
            raise StoredVectorMismatch(
                f"{name} is another one since it was prepared: its sparse vector of words is "
                f"{schema.words}, and was {prepared.words}. Nothing was written; call prepare() "
                f"again"
            )
        if schema.fingerprint not in (asked, prepared.fingerprint):
            raise StoredVectorMismatch(
                f"{name} is another one since it was prepared: its record says fingerprint "
                f"{schema.fingerprint}, and said {prepared.fingerprint}. Nothing was written; "
                f"call prepare() again with the model that is to write"
            )
        return schema
