"""Reusing the document vectors of an index, once it is known that this model made them.

Many models have 384 dimensions, and the vectors of another one still give cosines, only meaningless
ones. So a few candidates are encoded anew and compared.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.store.vectors import unit_or_none
from e2rank_rag.types import Cut, Hit, Store, TextEncoder

logger = logging.getLogger(__name__)

StoredVectors = Literal["check", "trust", "ignore"]
"""What to do with vectors that come with candidates: probe some of them and use them, use them
unseen, or encode every candidate anew."""

PROBED = 2
"""Candidates of one store that are compared for one call, where the store has no record of its
model; those whose text and vector were compared before count among them."""

PROBED_OF_MIXED = 3
"""Candidates that are compared of each list that names no store, and may be joined from several;
of those that were compared before, one counts among them."""

REMEMBERED_PAIRS = 100_000

SAME = 0.98
"""Cosine from which two encodings count as the same text's: bfloat16 and quantised vectors pass."""


@dataclass(frozen=True, slots=True)
class VectorCounts:
    """Where the document vectors of one call came from."""

    reused: int
    encoded: int


def check_policy(policy: str) -> None:
    """ValueError for a policy of another name."""
    if policy not in get_args(StoredVectors):
        raise ValueError(
            f"stored_vectors must be one of {list(get_args(StoredVectors))}, got {policy!r}"
        )


class CandidateVectors:
    """Gives every candidate its vector: the stored one, or one encoded on the spot.

    What is known of vectors: a pair of text and vector that was compared stays compared. A source
    does not stay known, since its collection can be deleted and made anew, or an alias switched:
    some vectors of each call are compared, unless `trust` says that none need be.
    """

    def __init__(self, encoder: TextEncoder, policy: StoredVectors = "check") -> None:
        check_policy(policy)
        self.encoder = encoder
        self.policy = policy
        self._trusted: set[str] = set()
        self._compared: set[bytes] = set()

    def fill(self, lists: Sequence[Sequence[Hit]]) -> tuple[list[list[Hit]], VectorCounts]:
        """The same candidates, each with its embedding of unit length, and how many were reused.

        An embedding that is zero or not finite is made anew, with a warning that names its
        document. Raises StoredVectorMismatch when the stored vectors are not this encoder's.
        """
        if self.policy == "ignore":
            lists = [[replace(hit, embedding=None) for hit in hits] for hits in lists]
        else:
            lists = [[self._usable(hit) for hit in hits] for hits in lists]
            self.probe(lists)
        missing = [hit.document.text for hits in lists for hit in hits if hit.embedding is None]
        encoded = iter(self.encoder.encode_documents(missing) if missing else ())
        made_by = self.encoder.fingerprint if missing else ""
        filled = [
            [
                replace(hit, embedding=next(encoded), source=made_by)
                if hit.embedding is None
                else hit
                for hit in hits
            ]
            for hits in lists
        ]
        total = sum(map(len, filled))
        return filled, VectorCounts(reused=total - len(missing), encoded=len(missing))

    def trust(self, source: str, trusted: bool = True) -> None:
        """Take the vectors of this source as they are, because its record names this encoder."""
        (self._trusted.add if trusted else self._trusted.discard)(source)

    def trust_as_recorded(self, store: Store) -> None:
        """`trust` the vectors of a store if it records this encoder's fingerprint now."""
        self.trust(store.name, store.fingerprint == self.encoder.fingerprint)

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
                "the vector of document %r in %s is zero or not finite: its text is encoded anew",
                hit.document.id,
                _where(hit),
            )
        return hit if vector is hit.embedding else replace(hit, embedding=vector)

    def probe(self, lists: Sequence[Sequence[Hit]]) -> None:
        """Encode some candidates of each source anew and compare; only under "check"."""
        if self.policy != "check":
            return
        groups: dict[object, list[Hit]] = {}
        for place, hits in enumerate(lists):
            for hit in hits:
                if hit.embedding is not None and not self._is_known(hit.source):
                    # Candidates that name no source may be joined from several, in each list anew.
                    groups.setdefault(hit.source or place, []).append(hit)
        chosen = {
            key: hit
            for group in groups.values()
            for key, hit in self._choose(group, one_store=bool(group[0].source))
        }
        if not chosen:
            return
        texts = [hit.document.text for hit in chosen.values()]
        fresh = self.encoder.encode_documents(texts, on_cut=_no_report)
        for hit, vector in zip(chosen.values(), fresh, strict=True):
            _compare(hit, vector, self.encoder)
        if len(self._compared) > REMEMBERED_PAIRS:
            self._compared.clear()
        self._compared.update(chosen)

    def _is_known(self, source: str) -> bool:
        return source in self._trusted or source == self.encoder.fingerprint

    def _choose(self, hits: Sequence[Hit], *, one_store: bool) -> list[tuple[bytes, Hit]]:
        """Some that were never compared: first the least like the list as a whole, then each the
        least like all that were compared, or are to be.

        Vectors of two models are far from each other in almost every direction.
        """
        keys = [_pair(hit) for hit in hits]
        vectors = np.stack([hit.embedding for hit in hits if hit.embedding is not None])
        known = np.array([key in self._compared for key in keys])
        # 2 leaves out what was compared.
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
            f"{cosine:.3f} with what {model} makes of its text (expected {SAME} or more): another "
            "model wrote it, or the same one over another text (title or meta fields added), "
            "prompt or length. Open the model that wrote it, index again, or encode anew with "
            'stored_vectors="ignore"'
        )


def _check_dim(hit: Hit, encoder: TextEncoder) -> None:
    shape = np.shape(hit.embedding)  # type: ignore[arg-type]
    if len(shape) != 1 or shape == (encoder.dim,):  # what is no vector, `unit_or_none` refuses
        return
    model = getattr(encoder, "name", type(encoder).__name__)
    raise StoredVectorMismatch(
        f"the stored vector of document {hit.document.id!r} in {_where(hit)} has "
        f"{shape[0]} dimensions, {model} has {encoder.dim}: another model wrote "
        "it; open that one, or index again with this one"
    )


def _where(hit: Hit) -> str:
    return hit.source or "the candidates"


def _pair(hit: Hit) -> bytes:
    assert hit.embedding is not None
    digest = hashlib.blake2b(hit.document.text.encode("utf-8", "surrogatepass"), digest_size=16)
    # The last digits of a vector vary with where it happens to lie in memory.
    digest.update(np.round(hit.embedding * 10_000).astype(np.int16).tobytes())
    return digest.digest()


def _no_report(cut: Cut) -> None:
    """A probe may cut a text as the index did: nothing to tell."""
