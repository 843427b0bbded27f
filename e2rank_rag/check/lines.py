"""The lines of Haystack and LangChain that search and rerank a checked collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from e2rank_rag.check.probe import Match
from e2rank_rag.store.layout import LANGCHAIN_LAYOUT, Layout
from e2rank_rag.store.sparse import SparseWords

QUERY = "what prevents falls?"

TRUST = 'stored_vectors="trust"'


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection is, and how a store opens it.

    location: folder or URL. keyed: whether the server asks for a key.
    words: what its sparse vectors hold where no record says it.
    beside: names of fields in the payload that are not in the meta, where the components look.
    """

    location: str
    collection: str
    layout: Layout
    vector_name: str | None = None
    keyed: bool = False
    words: SparseWords | None = None
    beside: frozenset[str] = frozenset()

    def options(self) -> list[str]:
        """Arguments of `QdrantStore.open` and `E2RankVectorStore` beside location and name."""
        found = []
        if self.keyed:
            found.append('api_key=os.environ["QDRANT_API_KEY"]')
        if self.layout == LANGCHAIN_LAYOUT:
            found.append("layout=LANGCHAIN_LAYOUT")
        elif self.layout != Layout():
            each = self.layout
            found.append(
                f"layout=Layout(id_key={_quoted(each.id_key)}, content_key="
                f"{_quoted(each.content_key)}, metadata_key={_quoted(each.metadata_key)})"
            )
        if self.vector_name is not None:
            found.append(f"vector_name={_quoted(self.vector_name)}")
        if self.words is not None:
            language = _quoted(self.words.bm25.language)
            found.append(f"bm25=Bm25(language={language})")
            found.append(f"bm25_name={_quoted(self.words.vector_name)}")
        return found

    def names(self) -> list[str]:
        """What the options need from `e2rank_rag`."""
        options = " ".join(self.options())
        return [name for name in ("LANGCHAIN_LAYOUT", "Bm25", "Layout") if f"={name}" in options]


def haystack_lines(place: Place, match: Match) -> str:
    """A program that searches the collection through the Haystack components.

    These find fields in the meta only; others are left out, as in `langchain_lines`.
    """
    model = [f"model={_quoted(match.model)}"]
    variant = match.variant
    if set(variant.fields) & place.beside:
        model.append(TRUST)
    elif variant.fields:
        model.append(f"meta_fields_to_embed=[{', '.join(map(_quoted, variant.fields))}]")
        model.append(f"embedding_separator={_quoted(variant.separator)}")
    if settings := _settings(match):
        pairs = ", ".join(f"{_quoted(name)}: {value}" for name, value in settings.items())
        model.append(f"encoder_kwargs={{{pairs}}}")
    return "\n".join(
        [
            *_imports(place, match, "QdrantStore"),
            "from haystack_integrations.components.retrievers.e2rank import E2RankRetriever",
            "",
            _call("store = QdrantStore.open", [*_where(place), *place.options()]),
            _call("retriever = E2RankRetriever", ["store", *model]),
            f'for document in retriever.run(query="{QUERY}")["documents"]:',
            "    print(document.score, document.content[:80])",
        ]
    )


def langchain_lines(place: Place, match: Match) -> str:
    """A program that searches the collection through the LangChain components.

    These read the text without fields in front, so for such a collection their own probe would
    refuse vectors that this check has compared: they are told to trust them.
    """
    location, collection = _where(place)
    settings = {"model": _quoted(match.model), **_settings(match)}
    model = ", ".join(f"{name}={value}" for name, value in settings.items())
    trusted = [TRUST] if match.variant.fields else []
    arguments = [
        f"E2RankEmbeddings({model})",
        f"location={location}",
        f"collection_name={collection}",
        *place.options(),
        *trusted,
    ]
    return "\n".join(
        [
            *_imports(place, match),
            "from langchain_e2rank import E2RankEmbeddings, E2RankRetriever, E2RankVectorStore",
            "",
            _call("store = E2RankVectorStore", arguments),
            "retriever = E2RankRetriever(vectorstore=store, k=10)",
            f'for document in retriever.invoke("{QUERY}"):',
            '    print(document.metadata["relevance_score"], document.page_content[:80])',
        ]
    )


def _imports(place: Place, match: Match, *more: str) -> list[str]:
    names = sorted({*more, *place.names()})
    lines = ["import os", ""] if place.keyed else []
    if names:
        lines.append(f"from e2rank_rag import {', '.join(names)}")
    if "prompts" in _settings(match):
        kind = type(match.recipe.prompts.listwise).__name__
        lines.append(f"from e2rank_rag.prompts import {', '.join(sorted(('Prompts', kind)))}")
    return lines


def _settings(match: Match) -> dict[str, str]:
    """Arguments of `Encoder.from_pretrained` that make the variant, as code."""
    own, recipe = match.own, match.recipe
    found = {}
    if recipe.document_tokens != own.document_tokens:
        found["max_length"] = str(recipe.document_tokens)
    if recipe.truncate_dim != own.truncate_dim:
        found["truncate_dim"] = str(recipe.truncate_dim)
    if recipe.prompts != own.prompts:
        query, document = map(_quoted, (recipe.prompts.query, recipe.prompts.document))
        listwise = f"{type(recipe.prompts.listwise).__name__}()"
        found["prompts"] = f"Prompts(query={query}, document={document}, listwise={listwise})"
    return found


def _where(place: Place) -> list[str]:
    return [_quoted(place.location), _quoted(place.collection)]


def _call(head: str, arguments: Sequence[str]) -> str:
    one = f"{head}({', '.join(arguments)})"
    if len(one) <= 88:
        return one
    return "\n".join([f"{head}(", *(f"    {each}," for each in arguments), ")"])


def _quoted(text: str | None) -> str:
    """A literal of Python; what is not printable is escaped."""
    literal = repr(text)
    if text is not None and '"' not in literal and "'" not in literal[1:-1]:
        return f'"{literal[1:-1]}"'
    return literal
