"""Reusing the document vectors of an index, once it is known that this model made them.

Many models have 384 dimensions, and the vectors of another one still give cosines, only meaningless
ones. So for each encoder and source of vectors two candidates are encoded anew and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.types import Cut, Hit, TextEncoder

StoredVectors = Literal["check", "trust", "ignore"]
"""What to do with vectors that come with candidates: probe two of them once per source and use
them, use them unseen, or encode every candidate anew."""

SAME = 0.98
"""Cosine from which two encodings count as the same text's: bfloat16 and quantised vectors pass."""


@dataclass(frozen=True, slots=True)
class VectorCounts:
    """Where the document vectors of one call came from."""

    reused: int
    encoded: int


def check_policy(policy: str) -> None:
    """ValueError for one that there is not."""
    if policy not in get_args(StoredVectors):
        raise ValueError(
            f"stored_vectors must be one of {list(get_args(StoredVectors))}, got {policy!r}"
        )


class CandidateVectors:
    """Gives every candidate its vector: the stored one, or one encoded on the spot."""

    def __init__(self, encoder: TextEncoder, policy: StoredVectors = "check") -> None:
        check_policy(policy)
        self.encoder = encoder
        self.policy = policy
        self._probed: set[str] = set()

    def fill(self, lists: Sequence[Sequence[Hit]]) -> tuple[list[list[Hit]], VectorCounts]:
        """The same candidates, each with its embedding, and how many of those were there already.

        Raises StoredVectorMismatch when the stored vectors are not this encoder's.
        """
        if self.policy == "ignore":
            lists = [[replace(hit, embedding=None) for hit in hits] for hits in lists]
        else:
            for hits in lists:
                for hit in hits:
                    _check_dim(hit, self.encoder)
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

    def probe(self, lists: Sequence[Sequence[Hit]]) -> None:
        """Encode two candidates anew and compare; once per source, unless it has fewer than two.

        Does nothing unless the policy is "check".
        """
        if self.policy != "check":
            return
        unknown: dict[str, list[Hit]] = {}
        for hits in lists:
            for hit in hits:
                if hit.embedding is not None and hit.source not in self._probed:
                    unknown.setdefault(hit.source, []).append(hit)
        for source, stored in unknown.items():
            if source != self.encoder.fingerprint:
                self._probe(source, stored)

    def _probe(self, source: str, stored: Sequence[Hit]) -> None:
        # The first and the last of them: neighbours in a ranking may be copies of one text.
        pair = [*stored[:1], *stored[1:][-1:]]
        fresh = self.encoder.encode_documents(
            [hit.document.text for hit in pair], on_cut=_no_report
        )
        for hit, vector in zip(pair, fresh, strict=True):
            _compare(hit, vector, self.encoder)
        if len(pair) == 2:
            self._probed.add(source)

    def trust(self, source: str) -> None:
        """Take the vectors of this source as verified, because its fingerprint is the encoder's."""
        self._probed.add(source)


def _compare(hit: Hit, vector: np.ndarray, encoder: TextEncoder) -> None:
    _check_dim(hit, encoder)
    stored = hit.embedding
    assert stored is not None
    where = hit.source or "the candidates"
    model = getattr(encoder, "name", type(encoder).__name__)
    cosine = float(stored @ vector) / max(float(np.linalg.norm(stored)), 1e-12)
    if not cosine >= SAME:
        raise StoredVectorMismatch(
            f"the stored vector of document {hit.document.id!r} in {where} has cosine {cosine:.3f} "
            f"with what {model} makes of its text (expected {SAME} or more): another model wrote "
            "it, or the same one over another text (title or meta fields added), prompt or length. "
            "Open the model that wrote it, index again, or encode anew with "
            'stored_vectors="ignore"'
        )


def _check_dim(hit: Hit, encoder: TextEncoder) -> None:
    if hit.embedding is None or hit.embedding.shape == (encoder.dim,):
        return
    where = hit.source or "the candidates"
    model = getattr(encoder, "name", type(encoder).__name__)
    raise StoredVectorMismatch(
        f"the stored vector of document {hit.document.id!r} in {where} has "
        f"{hit.embedding.shape[-1]} dimensions, {model} has {encoder.dim}: another model wrote it; "
        "open that one, or index again with this one"
    )


def _no_report(cut: Cut) -> None:
    """A probe may cut a text as the index did: nothing to tell."""
