"""The whole check of one collection, but for measuring: what it is, and which model wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from e2rank_rag.check.fit import Described, Mismatch, mismatches
from e2rank_rag.check.lines import Place
from e2rank_rag.check.outline import DenseVector, Outline, outline
from e2rank_rag.check.probe import Match, Tried, Wish, compare
from e2rank_rag.check.sample import Sample, draw
from e2rank_rag.check.variants import SEPARATORS
from e2rank_rag.check.words import found_words
from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store.connection import Connection


@dataclass(frozen=True)
class Asked:
    """What to check, and with what.

    location: folder or URL. models: names of models to try, in this order.
    described: name of the model in the user's pipeline; None: no pipeline was described.
    wish: the rest of that pipeline. size: texts to compare, drawn by the seed.
    """

    location: str
    models: Sequence[str]
    collection: str | None = None
    vector_name: str | None = None
    described: str | None = None
    wish: Wish = field(default_factory=Wish)
    size: int = 32
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    keyed: bool = False

    def opened(self, model: str) -> Encoder:
        """The model in float32: rounded vectors could not tell two variants apart."""
        return Encoder.from_pretrained(
            model, dtype="float32", device=self.device, threads=self.threads
        )


@dataclass(frozen=True)
class Findings:
    """What a check found.

    tried: every model that was compared. match: of the one that wrote the vectors; None: of none.
    mismatches: of the described pipeline; None if none was described, or no model was named.
    place: how to open the collection; None if no store of this library can.
    """

    outline: Outline
    vector: DenseVector
    sample: Sample
    tried: tuple[Tried, ...]
    match: Match | None
    mismatches: tuple[Mismatch, ...] | None
    place: Place | None

    @property
    def nearest(self) -> Match | None:
        """The best result of all models; None if none could be compared."""
        matches = [each.match for each in self.tried if each.match is not None]
        return max(matches, key=lambda match: (match.same, match.median), default=None)


def examine(connection: Connection, asked: Asked) -> Findings:
    """Read a sample of the collection, and compare it with the models.

    StoreError, ValueError: see `outline`, `Outline.vector` and `draw`.
    """
    seen = outline(connection, asked.collection)
    vector = seen.vector(asked.vector_name)
    if vector.several:
        raise ValueError(
            f"collection {seen.collection!r} keeps several vectors per document (multivector), "
            f"which no model here makes: name another vector"
        )
    sample = draw(connection, seen, vector, size=asked.size, seed=asked.seed)
    fingerprint = seen.record.get("fingerprint")
    tried, digests = _tried(asked, sample, fingerprint if isinstance(fingerprint, str) else None)
    match = next((each.match for each in tried if each.match and each.match.named), None)
    fits = None
    if match is not None and asked.described is not None:
        fits = tuple(mismatches(_described(asked, digests.get(asked.described)), match))
    place = None
    if match is not None and vector.usable:
        place = Place(
            asked.location,
            seen.collection,
            sample.layout.layout,
            vector.name,
            keyed=asked.keyed,
            words=found_words(seen, sample.texts, match.variant),
            beside=frozenset().union(*(text.beside for text in sample.texts)),
        )
    return Findings(seen, vector, sample, tuple(tried), match, fits, place)


def _tried(
    asked: Asked, sample: Sample, fingerprint: str | None
) -> tuple[list[Tried], dict[str, str]]:
    """The result of each model until one is named, and the digests of the opened ones."""
    tried: list[Tried] = []
    digests: dict[str, str] = {}
    named = False
    for name in dict.fromkeys((*asked.models, *filter(None, [asked.described]))):
        if named and name != asked.described:
            continue
        try:
            encoder = asked.opened(name)
        except (CheckpointError, ImportError) as error:
            tried.append(Tried(name, reason=str(error)))
            continue
        with encoder:
            known = encoder.digest in digests.values()
            digests[name] = encoder.digest
            if not named and not known:
                tried.append(compare(encoder, sample, asked.wish, fingerprint))
                named = tried[-1].match is not None and tried[-1].match.named
    return tried, digests


def _described(asked: Asked, digest: str | None) -> Described:
    wish = asked.wish
    assert asked.described is not None
    return Described(
        asked.described,
        digest,
        max_length=wish.tokens,
        fields=wish.fields,
        separator=SEPARATORS[0] if wish.separator is None else wish.separator,
        prefix=wish.prefix,
    )
