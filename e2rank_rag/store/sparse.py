"""The sparse vector of a collection: its name, and the Bm25 that fills it.

Nobody but the one who wrote it knows what a sparse vector holds (BM25, SPLADE, BM25 in another
language), so it is used only if the collection's record or the caller says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError
from qdrant_client import models

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.words import Bm25, SparseVector

BM25_KEY = "bm25"
NAME_KEY = "bm25_name"


@dataclass(frozen=True, slots=True)
class SparseWords:
    """A sparse vector with the words of a document.

    idf: whether Qdrant multiplies by the idf of the words, without which its scores are not BM25.
    """

    bm25: Bm25
    vector_name: str
    idf: bool = field(default=True, compare=False)

    @property
    def filter(self) -> models.Filter:
        """The points that have this sparse vector."""
        return models.Filter(must=[models.HasVectorCondition(has_vector=self.vector_name)])

    def record(self) -> dict[str, Any]:
        """What the collection's record says of it, as JSON values."""
        return {BM25_KEY: self.bm25.model_dump(mode="json"), NAME_KEY: self.vector_name}

    def config(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """`sparse_vectors_config` of a new collection. given: the caller's, which has priority."""
        ours = models.SparseVectorParams(modifier=models.Modifier.IDF)
        return {self.vector_name: ours, **(given or {})}

    def check_idf(self, name: str) -> None:
        """StoreError that names the collection if Qdrant does not multiply by the idf."""
        if not self.idf:
            raise StoreError(
                f"the sparse vector {self.vector_name!r} of {name} has no IDF modifier, so its "
                f"scores are not BM25: call client.update_collection({name_only(name)}, "
                f"sparse_vectors_config={{{self.vector_name!r}: models.SparseVectorParams("
                f"modifier=models.Modifier.IDF)}}), or search without words"
            )


def read_words(
    record: Mapping[str, Any], there: Mapping[str, Any], given: SparseWords | None, name: str
) -> SparseWords | None:
    """The sparse vector of a collection that holds words; None if nothing says so.

    record: of the collection. there: the collection's sparse vectors. given: what the caller says.
    StoreError for a damaged record, or if the collection has no such sparse vector;
    StoredVectorMismatch if the record says something else than the caller.
    """
    recorded = _recorded(record, name)
    if recorded is not None and given is not None:
        _check_same(recorded, given, name)
    words = recorded or given
    if words is None:
        return None
    if words.vector_name not in there:
        raise StoreError(
            f"{name} has no sparse vector {words.vector_name!r} (its sparse vectors: "
            f"{sorted(there)}): give bm25_name= one of them if it holds BM25, leave bm25 out, "
            f"index into another collection, or call add_words() of the store (Qdrant 1.18 and "
            f"newer) and index the documents again, which encodes nothing"
        )
    modifier = there[words.vector_name].modifier
    return replace(words, idf=modifier == models.Modifier.IDF)


def as_qdrant(vector: SparseVector) -> models.SparseVector:
    """The sparse vector as Qdrant's record."""
    return models.SparseVector(indices=vector.indices, values=vector.values)


def query_vectors(
    words: SparseWords | None, queries: Sequence[str], name: str
) -> list[SparseVector]:
    """The sparse vector of each query; StoreError if the collection cannot be searched by words."""
    if isinstance(queries, str):
        raise ValueError("queries must be a list of texts, got one text: put it into a list")
    words = words_in(words, name)
    words.check_idf(name)
    return [words.bm25.query(query) for query in queries]


def words_in(words: SparseWords | None, name: str) -> SparseWords:
    """The sparse vector of the collection of this name; StoreError without one."""
    if words is None:
        raise StoreError(
            f"{name} cannot be searched by words: give bm25=Bm25(...) when a new collection is "
            f"made, or for one with a sparse vector of BM25 that another tool wrote, with its "
            f"name as bm25_name="
        )
    return words


def name_only(name: str) -> str:
    """The quoted name of a collection, from its name in error messages."""
    return name.removeprefix("collection ").split(" ")[0]


def _recorded(record: Mapping[str, Any], name: str) -> SparseWords | None:
    if BM25_KEY not in record:
        return None
    vector_name = record.get(NAME_KEY)
    try:
        if not isinstance(vector_name, str):
            raise ValueError(f"{NAME_KEY} is {vector_name!r}, not a name")
        return SparseWords(Bm25.model_validate(record[BM25_KEY], strict=False), vector_name)
    except (ValidationError, ValueError) as error:
        raise StoreError(
            f"{name}: its record of Bm25 is damaged, or of a newer version ({error}): restore the "
            f"collection from a copy, or index again"
        ) from error


def _check_same(recorded: SparseWords, given: SparseWords, name: str) -> None:
    if recorded == given:
        return
    raise StoredVectorMismatch(
        f"{name} was written with {recorded.bm25!r} as {recorded.vector_name!r}, not with "
        f"{given.bm25!r} as {given.vector_name!r}: leave bm25 out, which takes what is recorded, "
        f"or index into another collection"
    )
