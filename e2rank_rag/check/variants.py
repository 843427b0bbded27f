"""The text that a model may have read for a stored document, and how much of it.

Haystack's embedders put meta fields in front of the content and a prefix in front of all; other
code does the same by hand. Models differ in the prefix that they were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from e2rank_rag.check.sample import fields_of
from e2rank_rag.prompts import Prompts
from e2rank_rag.recipe import Recipe
from e2rank_rag.store.layout import Layout
from e2rank_rag.types import Document

SEPARATORS = ("\n", " ", "\n\n", ". ", " - ", ": ")
"""What stands between fields and content; the first is Haystack's default."""

PREFIXES = {
    "": "",
    "passage: ": "query: ",
    "query: ": "query: ",
    "search_document: ": "search_query: ",
    "document: ": "query: ",
    "title: none | text: ": "task: search result | query: ",
}
"""Prefixes of documents in known models, each with that of queries. E5 has "passage: ", models of
Nomic "search_document: ", EmbeddingGemma "title: none | text: "."""

LIMITS = (64, 128, 256, 384, 512)
"""Lengths in tokens at which models cut their texts."""

_DOCUMENT = "{document}"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way from a stored document to the tokens of a model.

    fields: what stands in front of the content, joined by the separator.
    prefix: stands in front of all. None: the model's own prompt.
    tokens: where the text is cut, special tokens included.
    """

    tokens: int
    fields: tuple[str, ...] = ()
    separator: str = SEPARATORS[0]
    prefix: str | None = None

    def text(self, content: str, fields: Mapping[str, str]) -> str:
        """The text without the prefix; a field that the document lacks is left out."""
        there = [fields[name] for name in self.fields if name in fields]
        return self.separator.join([*there, content])

    def recipe(self, own: Recipe, kept: int | None) -> Recipe:
        """The model's recipe, changed so that it makes the vectors of this variant.

        kept: how many leading dimensions the vectors have; None: all of the model's.
        """
        changes: dict[str, Any] = {"document_tokens": self.tokens, "truncate_dim": kept}
        if self.tokens != own.document_tokens:
            # sentence-transformers and our max_length cut queries at the same length.
            changes["query_tokens"] = self.tokens
        if self.prefix is not None:
            changes["prompts"] = with_prefix(own.prompts, self.prefix)
        return own.model_copy(update=changes)


def own_prefix(prompts: Prompts) -> str | None:
    """The prefix that a model's own prompt puts in front of a document; None for another prompt."""
    template = prompts.document
    return template[: -len(_DOCUMENT)] if template.endswith(_DOCUMENT) else None


def with_prefix(prompts: Prompts, prefix: str) -> Prompts:
    """The prompts with this prefix of documents, and of queries the one that belongs to it."""
    if prefix == own_prefix(prompts):
        return prompts
    changes = {"document": escaped(prefix) + _DOCUMENT}
    if prefix in PREFIXES:
        changes["query"] = escaped(PREFIXES[prefix]) + "{query}"
    return prompts.model_copy(update=changes)


def escaped(prefix: str) -> str:
    """A prefix for a template; ValueError if it would be taken for a place of the template."""
    if any(place in prefix for place in (_DOCUMENT, "{query}", "{task}")):
        raise ValueError(f"the prefix {prefix!r} holds a place of a template: leave it out")
    return prefix


@dataclass(frozen=True)
class EmbeddedLayout(Layout):
    """A layout whose documents have the text that was embedded: fields in front of the content."""

    variant: Variant = Variant(tokens=0)

    @classmethod
    def over(cls, layout: Layout, variant: Variant) -> EmbeddedLayout:
        """The same payload keys."""
        return cls(layout.id_key, layout.content_key, layout.metadata_key, variant)

    def document(self, point: Any) -> Document:
        """The document of a point with its payload; StoreError where the keys are not these."""
        stored = Layout.document(self, point)
        fields = fields_of(point.payload or {}, self)
        return Document(stored.id, self.variant.text(stored.text, fields), stored.meta)


def field_choices(names: Sequence[str], wished: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Which fields may stand in front: none, each alone, and those that the user names."""
    return list(dict.fromkeys([(), wished, *((name,) for name in names)]))


def pairs(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Two of the fields, in both orders."""
    return list(permutations(names, 2))
