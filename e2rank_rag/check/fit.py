"""Whether a pipeline makes the vectors that a collection holds, and what to change where not."""

from __future__ import annotations

from dataclasses import dataclass

from e2rank_rag.check.probe import Match
from e2rank_rag.check.variants import SEPARATORS, own_prefix

NO_FIELDS = "the text alone"


@dataclass(frozen=True, slots=True)
class Described:
    """A pipeline as its user describes it.

    model: its name. digest: of its weights; None if it was not opened, because it is no encoder.
    max_length: in tokens; None: the model's own. fields: in front of the text, joined by separator.
    prefix: in front of all; None: the model's own prompt.
    """

    model: str
    digest: str | None
    max_length: int | None = None
    fields: tuple[str, ...] = ()
    separator: str = SEPARATORS[0]
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference between pipeline and collection, in words, and what to change."""

    what: str
    pipeline: str
    collection: str
    change: str


def mismatches(described: Described, match: Match) -> list[Mismatch]:
    """Every difference; an empty list where the pipeline makes these vectors."""
    if described.digest != match.digest:
        return [
            Mismatch(
                "model",
                described.model,
                match.model,
                f"open {match.model}, or index again with {described.model}",
            )
        ]
    found = [_fields(described, match), _prefix(described, match), _length(described, match)]
    return [each for each in found if each is not None]


def _fields(described: Described, match: Match) -> Mismatch | None:
    variant = match.variant
    same = variant.separator == described.separator or described.separator in match.separators
    if described.fields == variant.fields and (same or not variant.fields):
        return None
    if variant.fields:
        change = f"meta_fields_to_embed={list(variant.fields)!r}"
        change += f", embedding_separator={variant.separator!r}"
    else:
        change = "meta_fields_to_embed=[]"
    return Mismatch(
        "text",
        _joined(described.fields, described.separator),
        _joined(variant.fields, variant.separator),
        f"set {change}",
    )


def _prefix(described: Described, match: Match) -> Mismatch | None:
    own = own_prefix(match.own.prompts)
    given = own if described.prefix is None else described.prefix
    if given == match.prefix:
        return None
    return Mismatch(
        "prefix", repr(given), repr(match.prefix), f"set the document's prefix to {match.prefix!r}"
    )


def _length(described: Described, match: Match) -> Mismatch | None:
    given = described.max_length or match.own.document_tokens
    if given == match.variant.tokens or given in match.limits:
        return None
    return Mismatch(
        "length",
        f"texts are cut at {given} tokens",
        f"texts were cut at {match.variant.tokens} tokens",
        f"set max_length={match.variant.tokens}",
    )


def _joined(fields: tuple[str, ...], separator: str) -> str:
    if not fields:
        return NO_FIELDS
    return f"{', '.join(fields)} in front of the text, joined by {separator!r}"
