"""Which model wrote the vectors: texts are encoded again, in many variants, and compared.

Two vectors of one text have cosine 1, but for the digits that the writer's dtype kept. Vectors of
another model, another text or another length have a lower one. A model is named only where nearly
all sampled texts have at least `SAME` under one variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Self

import numpy as np
from numpy.typing import NDArray

from e2rank_rag.check.sample import Sample, StoredText
from e2rank_rag.check.variants import (
    LIMITS,
    PREFIXES,
    SEPARATORS,
    Variant,
    field_choices,
    own_prefix,
    pairs,
)
from e2rank_rag.models.config import positions
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.recipe import Recipe
from e2rank_rag.types import Cut, Embeddings

SAME = 0.999
"""Cosine from which two vectors are of one text by one model. Vectors that were computed in
bfloat16 have about 0.9999; a word more in a text of 200 has less than this."""

NEARLY_ALL = 0.95
"""Share of the sampled texts that must have `SAME`. The others may have been changed since."""

FOREIGN = 0.3
"""A mean cosine below this is another model's: no variant of a text moves its vector so far."""

SCOUTS = 6
"""Texts that every variant is tried on; all sampled texts are compared under the best variant."""

NOISE = 1e-5
"""Two cosines that differ by less are equal: the same sum, computed in another order."""

FINALISTS = 4
"""Variants that are tried on the scouts, each at every length."""

PAIRED = 4
"""Fields of which two are tried together."""

Cosines = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Match:
    """How near one model's vectors come to the stored ones under its best variant.

    model: its name. recipe: what makes the vectors of the variant.
    cosines: of each sampled text, [n]. ids: of these documents.
    limits, separators: those that cannot be told apart by the sampled texts, the variant's own
        included.
    """

    model: str
    variant: Variant
    recipe: Recipe
    own: Recipe
    digest: str
    cosines: Cosines
    ids: tuple[str, ...]
    limits: tuple[int, ...] = ()
    separators: tuple[str, ...] = ()

    @property
    def same(self) -> int:
        """How many of the texts have at least the cosine `SAME`."""
        return int((self.cosines >= SAME).sum())

    @property
    def named(self) -> bool:
        """Whether this model wrote the vectors."""
        return self.same >= ceil(NEARLY_ALL * len(self.cosines))

    @property
    def median(self) -> float:
        """The median cosine."""
        return float(np.median(self.cosines))

    @property
    def prefix(self) -> str | None:
        """What stands in front of all; None for a prompt of the model that is no prefix."""
        return own_prefix(self.recipe.prompts)


@dataclass(frozen=True, slots=True)
class Tried:
    """One model that was compared: with what result, or why it could not be."""

    model: str
    match: Match | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user says of the texts, tried in addition to the usual variants."""

    fields: tuple[str, ...] = ()
    separator: str | None = None
    prefix: str | None = None
    tokens: int | None = None


def compare(encoder: Encoder, sample: Sample, wish: Wish, fingerprint: str | None) -> Tried:
    """Find the variant under which this model's vectors come nearest to the stored ones.

    fingerprint: recorded in the collection. Among variants that cannot be told apart, the one that
    has it is taken, else the model's own settings.
    """
    stored = len(sample.texts[0].vector)
    most = encoder.hidden_size
    if stored > most:
        reason = f"its vectors have {most} dimensions, the stored ones {stored}"
        return Tried(encoder.name, reason=reason)
    with Comparer(encoder, sample.texts) as comparer:
        search = _Search(comparer, sample.fields, wish)
        best = search.best()
        cosines = comparer.cosines(best)
        match = Match(
            model=encoder.name,
            variant=best,
            recipe=best.recipe(encoder.recipe, comparer.kept),
            own=encoder.recipe,
            digest=encoder.digest,
            cosines=cosines,
            ids=tuple(text.id for text in sample.texts),
        )
        if match.named:
            match = search.told_apart(match, fingerprint)
    return Tried(encoder.name, match)


class Comparer:
    """Encodes texts under variants, each list of tokens once."""

    def __init__(self, encoder: Encoder, texts: Sequence[StoredText]) -> None:
        self.encoder = encoder
        self.texts = texts
        self.stored = np.stack([text.vector for text in texts])
        self._vectors: dict[tuple[int, ...], Embeddings] = {}
        self._encoders: dict[tuple[int, str | None], Encoder] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @property
    def kept(self) -> int | None:
        """How many dimensions the stored vectors keep of this model's; None: all."""
        own, stored = self.encoder.recipe.truncate_dim, self.stored.shape[1]
        return None if own is None and stored == self.encoder.hidden_size else stored

    @property
    def limits(self) -> tuple[int, ...]:
        """The lengths that this model can have, its own first."""
        own = self.encoder.recipe.document_tokens
        return (own, *(limit for limit in LIMITS if limit <= self.longest and limit != own))

    @property
    def longest(self) -> int:
        """How many tokens the model can place."""
        return positions(self.encoder.loaded.transformer.config)

    def tokens(self, variant: Variant, rows: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """What the model reads of each text."""
        texts = self._texts(variant, self._rows(rows))
        encoder = self._encoder(variant)
        found = encoder.loaded.worker.run(lambda: encoder.tokenizer.documents(texts))
        return [tuple(tokens.ids) for tokens in found]

    def cosines(self, variant: Variant, rows: Sequence[int] | None = None) -> Cosines:
        """The cosine of each text's stored vector with the one that the variant makes, [n]."""
        cosines: Cosines = self.cosines_of([variant], rows)[0]
        return cosines

    def cosines_of(self, variants: Sequence[Variant], rows: Sequence[int] | None = None) -> Cosines:
        """`cosines` for each variant, [variants, n]; encodes the texts of all together."""
        chosen = self._rows(rows)
        stored = self.stored[chosen].astype(np.float64)
        keys = [self.tokens(variant, chosen) for variant in variants]
        self._encode(variants, chosen, keys)
        found = np.empty((len(variants), len(chosen)))
        for place, of_texts in enumerate(keys):
            # A Matryoshka vector is the beginning of the whole one.
            fresh = np.stack([self._vectors[key] for key in of_texts])[:, : stored.shape[1]]
            fresh = fresh.astype(np.float64)
            lengths = np.linalg.norm(fresh, axis=1) * np.linalg.norm(stored, axis=1)
            found[place] = (fresh * stored).sum(axis=1) / np.maximum(lengths, 1e-12)
        return found

    def _encode(
        self,
        variants: Sequence[Variant],
        rows: Sequence[int],
        keys: Sequence[Sequence[tuple[int, ...]]],
    ) -> None:
        """Encode the lists of tokens that were not met before, with one call per encoder."""
        missing: dict[Encoder, dict[tuple[int, ...], str]] = {}
        seen = set(self._vectors)
        for variant, of_texts in zip(variants, keys, strict=True):
            for key, text in zip(of_texts, self._texts(variant, rows), strict=True):
                if key not in seen:
                    seen.add(key)
                    missing.setdefault(self._encoder(variant), {})[key] = text
        for encoder, texts in missing.items():
            vectors = encoder.encode_documents(list(texts.values()), on_cut=_ignore)
            self._vectors.update(zip(texts, vectors, strict=True))

    def _rows(self, rows: Sequence[int] | None) -> list[int]:
        return list(range(len(self.texts))) if rows is None else list(rows)

    def _texts(self, variant: Variant, rows: Sequence[int]) -> list[str]:
        return [variant.text(self.texts[row].content, self.texts[row].fields) for row in rows]

    def _encoder(self, variant: Variant) -> Encoder:
        """The model with the prefix and the length of a variant, and all its dimensions."""
        key = variant.tokens, variant.prefix
        if key not in self._encoders:
            whole = variant.recipe(self.encoder.recipe, None)
            self._encoders[key] = self._opened.enter_context(self.encoder.with_recipe(whole))
        return self._encoders[key]


@dataclass
class _Search:
    """Tries every combination of fields, separator, prefix and length on the two shortest texts,
    where few lengths matter, and the best ones on more texts."""

    comparer: Comparer
    fields: Sequence[str]
    wish: Wish
    scouts: list[int] = field(init=False)
    limits: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.comparer.texts)
        places = np.linspace(0, count - 1, min(SCOUTS, count)).round().astype(int)
        self.scouts = [int(place) for place in places]
        wished = self.wish.tokens
        more = (wished,) if wished is not None and 8 <= wished <= self.comparer.longest else ()
        self.limits = tuple(dict.fromkeys((*self.comparer.limits, *more)))

    def best(self) -> Variant:
        """The best variant: by how many scouts have `SAME`, then by their mean cosine."""
        best = Variant(tokens=self.limits[0])
        if self.comparer.cosines(best, self.scouts).mean() < FOREIGN:
            return best
        for tried in self._rounds():
            if self._score(best)[0] == len(self.scouts):
                break
            best = max([best, *self._finalists(tried)], key=self._score)
        return best

    def told_apart(self, match: Match, fingerprint: str | None) -> Match:
        """The match with the parts that its texts cannot tell apart; a nearer one is taken."""
        variant, own, kept = match.variant, self.comparer.encoder.recipe, self.comparer.kept
        separators = self._alternatives(variant, self._joined(variant))
        if separators:
            variant = separators[0]
        limits = self._alternatives(variant, self._cut(variant))
        recorded = [
            each
            for each in limits
            if each.recipe(own, kept).document_fingerprint(match.digest) == fingerprint
        ]
        variant = (recorded or limits)[0]
        return replace(
            match,
            variant=variant,
            recipe=variant.recipe(own, kept),
            cosines=self.comparer.cosines(variant),
            limits=tuple(sorted(each.tokens for each in limits)),
            separators=tuple(each.separator for each in separators),
        )

    def _rounds(self) -> Iterator[list[Variant]]:
        """Variants to try, the likely ones first: fields, then prefixes, then two fields."""
        own = Variant(tokens=self.limits[0])
        prefixed = [replace(own, prefix=prefix) for prefix in self._prefixes()]
        alone, two = field_choices(self.fields, self.wish.fields), pairs(self.fields[:PAIRED])
        for begin, choices in (([own], alone), (prefixed, alone)):
            joined = self._combined(begin, choices)
            yield [each for variant in joined for each in self._cut(variant)]
        # Too many for every length: a wrong one makes all of them farther alike.
        yield self._combined([own, *prefixed], two)

    def _combined(
        self, begin: Sequence[Variant], choices: Sequence[tuple[str, ...]]
    ) -> list[Variant]:
        """Each beginning with each choice of fields and every separator."""
        fielded = [replace(each, fields=chosen) for each in begin for chosen in choices]
        return [each for variant in fielded for each in self._joined(variant) or [variant]]

    def _finalists(self, tried: Sequence[Variant]) -> list[Variant]:
        """The best variants by the nearer of the two shortest texts, with all lengths."""
        rows = list(range(min(2, len(self.comparer.texts))))
        nearest = self.comparer.cosines_of(tried, rows).max(axis=1)
        order = np.argsort(-nearest, kind="stable")
        best = dict.fromkeys(replace(tried[place], tokens=self.limits[0]) for place in order)
        return [each for variant in list(best)[:FINALISTS] for each in self._cut(variant)]

    def _score(self, variant: Variant) -> tuple[int, float]:
        cosines = self.comparer.cosines(variant, self.scouts)
        return int((cosines >= SAME).sum()), float(cosines.mean())

    def _alternatives(self, variant: Variant, others: Sequence[Variant]) -> list[Variant]:
        """The nearest variant, then those that no text tells from it, in the order of `others`.

        Of several that are equally near, the first of `others` counts as the nearest.
        """
        if not others:
            return []
        rows = sorted({*self.scouts, len(self.comparer.texts) - 1})  # the longest is the last
        # A text that was changed since tells nothing.
        unchanged = self.comparer.cosines(variant, rows) >= SAME
        rows = [row for row, same in zip(rows, unchanged, strict=True) if same] or rows
        means = self.comparer.cosines_of(others, rows).mean(axis=1)
        nearest = others[int(np.argmax(means >= means.max() - NOISE))]
        alike = [each for each in others if each != nearest and not self._differs(nearest, each)]
        return [nearest, *alike]

    def _differs(self, best: Variant, other: Variant) -> bool:
        """Whether every text that the two make different tokens of is nearer under the best."""
        ours, theirs = (self.comparer.tokens(each) for each in (best, other))
        rows = [row for row, (one, two) in enumerate(zip(ours, theirs, strict=True)) if one != two]
        rows = rows[:: max(1, len(rows) // SCOUTS)]
        if not rows:
            return False
        cosines = self.comparer.cosines(best, rows)
        nearer = cosines - self.comparer.cosines(other, rows)
        return bool((nearer > NOISE)[cosines >= SAME].all())

    def _prefixes(self) -> list[str]:
        own = own_prefix(self.comparer.encoder.recipe.prompts)
        wished = () if self.wish.prefix is None else (self.wish.prefix,)
        return [each for each in dict.fromkeys((*wished, *PREFIXES)) if each != own]

    def _cut(self, variant: Variant) -> list[Variant]:
        """The variant at every length, the model's own first."""
        return [replace(variant, tokens=limit) for limit in self.limits]

    def _joined(self, variant: Variant) -> list[Variant]:
        """The variant with every separator; none without fields to join."""
        wished = () if self.wish.separator is None else (self.wish.separator,)
        choices = dict.fromkeys((*SEPARATORS, *wished)) if variant.fields else ()
        return [replace(variant, separator=separator) for separator in choices]


def _ignore(cut: Cut) -> None:
    """Report nothing: cutting is what is compared."""
