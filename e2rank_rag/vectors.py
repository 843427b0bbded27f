"""The vectors of candidates: read from a store, checked, or encoded.

    vectors = CandidateVectors(encoder)
    hits = vectors.read(hits, store)          # stored vectors of the same text
    [hits], counts = vectors.attach([hits])   # probe these, encode the rest

Many models have 384 dimensions, so another model's vectors give cosines without an error, and these
mean nothing. So a vector is reused only if its fingerprint is the encoder's, or after a probe: a
few documents are encoded again and compared. No other module gives candidates their vectors.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Literal, get_args

import numpy as np

from e2rank_rag.candidates import without_copies
from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.store.vectors import unit_or_none
from e2rank_rag.threads import one_team
from e2rank_rag.types import Cut, Document, Hit, Store, StoredDocument, TextEncoder

logger = logging.getLogger(__name__)

StoredVectors = Literal["check", "trust", "ignore"]
"""What to do with stored vectors: "check" probes a few and uses them, "trust" uses them without a
probe, and "ignore" encodes every candidate again."""

HitsOrIds = Sequence[Hit] | Sequence[str]
"""A ranking from elsewhere, best first: hits, or the ids of documents in the store."""

PROBED = 2
"""Documents of one store that a call compares. Documents compared by an earlier call count."""

PROBED_OF_MIXED = 3
"""Documents that a call compares in each list without a source, which may be joined from several
stores. At most one document compared by an earlier call counts."""

REMEMBERED_PAIRS = 100_000

SAME = 0.98
"""Two vectors with at least this cosine count as the same: bfloat16 and quantised vectors pass."""


@dataclass(frozen=True, slots=True)
class VectorCounts:
    """How many document vectors of one call were reused, and how many were encoded."""

    reused: int
    encoded: int


def check_policy(policy: str) -> None:
    """Raise ValueError unless the policy is one of `StoredVectors`."""
    if policy not in get_args(StoredVectors):
        raise ValueError(
            f"stored_vectors must be one of {list(get_args(StoredVectors))}, got {policy!r}"
        )


def with_stored(
    hits: Sequence[Hit],
    stored: Mapping[str, StoredDocument],
    source: str,
    *,
    ids: Sequence[str | None] | None = None,
    text: Callable[[Document], str] | None = None,
) -> list[Hit]:
    """The hits; one without a vector gets the stored vector if the store holds the same text.

    stored: documents with embeddings, by their ids in the store; source: the store's name.
    ids: the hits' ids in the store, None for a hit that is not in it; by default the document ids.
    text: gives the text that was encoded for a stored document; by default `document.text`.
    """
    found = []
    for hit, id in zip(hits, _ids(hits) if ids is None else ids, strict=True):
        known = None if id is None or hit.embedding is not None else stored.get(id)
        if known is not None and known.embedding is not None:
            embedded = known.document.text if text is None else text(known.document)
            if embedded == hit.document.text:
                hit = replace(
                    hit,
                    embedding=known.embedding,
                    source=source,
                    fingerprint=known.fingerprint,
                )
        found.append(hit)
    return found


def ids_of(queries: Sequence[str], candidates: Sequence[HitsOrIds]) -> list[str]:
    """The ids of all candidates, each once."""
    if len(candidates) != len(queries):
        raise ValueError(f"{len(queries)} queries came with {len(candidates)} candidate lists")
    asked = {
        item if isinstance(item, str) else item.document.id: None
        for items in candidates
        for item in items
    }
    return list(asked)


def stored_hits(
    candidates: Sequence[HitsOrIds], stored: Mapping[str, StoredDocument], source: str
) -> list[list[Hit]]:
    """Hits, with the stored vector where the store holds the same text under the hit's id."""
    unknown = [
        item
        for items in candidates
        for item in items
        if isinstance(item, str) and item not in stored
    ]
    if unknown:
        raise ValueError(
            f"{len(unknown)} candidates are not in the store, among them {unknown[:5]}: index "
            "them, or pass hits with their text"
        )
    lists = [
        [
            Hit(stored[item].document, nan)
            if isinstance(item, str)
            else replace(item, embedding=None, source="", fingerprint=None)
            for item in items
        ]
        for items in candidates
    ]
    return [without_copies(with_stored(hits, stored, source)) for hits in lists]


class CandidateVectors:
    """Gives every candidate its vector: the stored one, or a new one from the encoder.

    One object serves all calls of a reranker or a pipeline, because it remembers which pairs of
    text and vector it has compared. It does not remember a store, because a collection can be
    deleted and made again, and an alias can be switched.
    """

    def __init__(self, encoder: TextEncoder, policy: StoredVectors = "check") -> None:
        check_policy(policy)
        self.encoder = encoder
        self.policy = policy
        self._compared: set[bytes] = set()

    def read(
        self,
        hits: Sequence[Hit],
        store: Store,
        *,
        ids: Sequence[str | None] | None = None,
        text: Callable[[Document], str] | None = None,
    ) -> list[Hit]:
        """The hits, with stored vectors where they had none; arguments as in `with_stored`.

        Reads the documents in one request. Reads nothing under "ignore", and if every hit has its
        vector. `attach` then checks the vectors and encodes the missing ones.
        """
        wanted = self._wanted(hits, ids)
        if not wanted:
            return list(hits)
        stored = store.get(wanted, with_embeddings=True)
        return with_stored(hits, stored, store.name, ids=ids, text=text)

    async def aread(
        self,
        hits: Sequence[Hit],
        store: Store,
        *,
        ids: Sequence[str | None] | None = None,
        text: Callable[[Document], str] | None = None,
    ) -> list[Hit]:
        """`read` without blocking the event loop."""
        wanted = self._wanted(hits, ids)
        if not wanted:
            return list(hits)
        stored = await store.aget(wanted, with_embeddings=True)
        return with_stored(hits, stored, store.name, ids=ids, text=text)

    def attach(self, lists: Sequence[Sequence[Hit]]) -> tuple[list[list[Hit]], VectorCounts]:
        """The same hits, each with its vector of unit length, and how many vectors were reused.

        A vector that is zero or not finite is encoded again, with a warning that names its
        document. Raises StoredVectorMismatch if another encoder made the vectors.
        """
        if self.policy == "ignore":
            lists = [[replace(hit, embedding=None) for hit in hits] for hits in lists]
        else:
            lists = [[self._usable(hit) for hit in hits] for hits in lists]
            lists = self.probe(lists)
        missing = [hit.document.text for hits in lists for hit in hits if hit.embedding is None]
        encoded = iter(self.encoder.encode_documents(missing) if missing else ())
        made_by = self.encoder.fingerprint if missing else None
        filled = [
            [
                replace(hit, embedding=next(encoded), source="", fingerprint=made_by)
                if hit.embedding is None
                else hit
                for hit in hits
            ]
            for hits in lists
        ]
        total = sum(map(len, filled))
        return filled, VectorCounts(reused=total - len(missing), encoded=len(missing))

    def _wanted(self, hits: Sequence[Hit], ids: Sequence[str | None] | None) -> list[str]:
        """The store's ids for the hits without a vector."""
        if self.policy == "ignore":
            return []
        return [
            id
            for hit, id in zip(hits, _ids(hits) if ids is None else ids, strict=True)
            if hit.embedding is None and id is not None
        ]

    def _usable(self, hit: Hit) -> Hit:
        if hit.embedding is None:
            return hit
        _check_dim(hit, self.encoder)
        try:
            vector = unit_or_none(hit.embedding)
        except ValueError as error:
            raise ValueError(f"document {hit.document.id!r} in {_where(hit)}: {error}") from error
        if vector is None:
            logger.warning(
                "the vector of document %r in %s is zero or not finite: its text is encoded again",
                hit.document.id,
                _where(hit),
            )
        return hit if vector is hit.embedding else replace(hit, embedding=vector)

    @one_team
    def probe(self, lists: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
        """Encode a few documents of each source again and compare; only under "check".

        Returns the hits, those with a vector marked with the encoder's fingerprint, so that they
        are not probed again. Vectors that have it already are not probed.
        Raises StoredVectorMismatch for a vector whose cosine with the new one is below `SAME`.
        """
        unchanged = [list(hits) for hits in lists]
        if self.policy != "check" or all(hit.embedding is None for hits in lists for hit in hits):
            return unchanged
        own = self.encoder.fingerprint
        groups: dict[object, list[Hit]] = {}
        for place, hits in enumerate(lists):
            for hit in hits:
                if hit.embedding is not None and hit.fingerprint != own:
                    # A list without a source may be joined from several: it is probed by itself.
                    groups.setdefault(hit.source or place, []).append(hit)
        if not groups:
            return unchanged
        chosen = {
            key: hit
            for group in groups.values()
            for key, hit in self._choose(group, one_store=bool(group[0].source))
        }
        if chosen:
            self._encode_again(chosen)
        return [
            [hit if hit.embedding is None else replace(hit, fingerprint=own) for hit in hits]
            for hits in lists
        ]

    def _encode_again(self, chosen: Mapping[bytes, Hit]) -> None:
        texts = [hit.document.text for hit in chosen.values()]
        fresh = self.encoder.encode_documents(texts, on_cut=_ignore_cut)
        for hit, vector in zip(chosen.values(), fresh, strict=True):
            _compare(hit, vector, self.encoder)
        if len(self._compared) > REMEMBERED_PAIRS:
            self._compared.clear()
        self._compared.update(chosen)

    def _choose(self, hits: Sequence[Hit], *, one_store: bool) -> list[tuple[bytes, Hit]]:
        """The pairs to compare: first the one that is least similar to the mean of the list, then
        always the one that is least similar to all compared pairs.

        Vectors of two models differ in almost every direction, so the outliers show a second model.
        """
        keys = [_pair(hit) for hit in hits]
        vectors = np.stack([hit.embedding for hit in hits if hit.embedding is not None])
        known = np.array([key in self._compared for key in keys])
        # A likeness of 2, above every cosine, leaves a pair out.
        likeness = np.where(known, 2.0, vectors @ vectors.mean(axis=0))
        nearest = (vectors @ vectors[known].T).max(axis=1, initial=-1.0)
        compared = int(known.sum())
        count = PROBED - compared if one_store else PROBED_OF_MIXED - min(compared, 1)
        chosen: list[tuple[bytes, Hit]] = []
        while len(chosen) < count and (likeness < 2.0).any():
            place = int(np.argmin(likeness))
            chosen.append((keys[place], hits[place]))
            known |= np.array([key == keys[place] for key in keys])
            nearest = np.maximum(nearest, vectors @ vectors[place])
            likeness = np.where(known, 2.0, nearest)
        return chosen


def _compare(hit: Hit, vector: np.ndarray, encoder: TextEncoder) -> None:
    _check_dim(hit, encoder)
    stored = hit.embedding
    assert stored is not None
    model = getattr(encoder, "name", type(encoder).__name__)
    cosine = float(stored @ vector) / max(float(np.linalg.norm(stored)), 1e-12)
    if not cosine >= SAME:
        raise StoredVectorMismatch(
            f"the stored vector of document {hit.document.id!r} in {_where(hit)} has cosine "
            f"{cosine:.3f} with the vector that {model} gives for its text (expected {SAME} or "
            "more): another model wrote it, or the same model with another text (title or meta "
            "fields added), prompt or length limit. Open the model that wrote it, index again, or "
            'encode every candidate again with stored_vectors="ignore"'
        )


def _check_dim(hit: Hit, encoder: TextEncoder) -> None:
    shape = np.shape(hit.embedding)  # type: ignore[arg-type]
    if len(shape) != 1 or shape == (encoder.dim,):  # `unit_or_none` refuses what is not a vector
        return
    model = getattr(encoder, "name", type(encoder).__name__)
    raise StoredVectorMismatch(
        f"the stored vector of document {hit.document.id!r} in {_where(hit)} has "
        f"{shape[0]} dimensions, {model} has {encoder.dim}: another model wrote "
        "it; open that one, or index again with this one"
    )


def _ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.document.id for hit in hits]


def _where(hit: Hit) -> str:
    return hit.source or "the candidates"


def _pair(hit: Hit) -> bytes:
    """A digest of text and vector."""
    assert hit.embedding is not None
    digest = hashlib.blake2b(hit.document.text.encode("utf-8", "surrogatepass"), digest_size=16)
    # The last digits of a vector vary with where it happens to lie in memory.
    digest.update(np.round(hit.embedding * 10_000).astype(np.int16).tobytes())
    return digest.digest()


def _ignore_cut(cut: Cut) -> None:
    """Report nothing: the probe cuts a text where indexing cut it."""
