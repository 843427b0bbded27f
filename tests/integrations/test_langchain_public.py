"""The names and defaults of the LangChain components, which saved configurations rely on."""

from __future__ import annotations

import inspect

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_e2rank import (
    E2RankEmbeddings,
    E2RankReranker,
    E2RankRetriever,
    E2RankTranslator,
    E2RankVectorStore,
)
from pydantic import ValidationError

MODEL = {
    "model": "e2rank-minilm",
    "task": None,
    "device": None,
    "dtype": None,
    "threads": None,
    "max_length": None,
    "truncate_dim": None,
    "pooling": None,
    "prompts": None,
    "attn_implementation": None,
    "revision": None,
    "local_files_only": False,
}
RERANKER = {
    **MODEL,
    "system": None,
    "top_n": 3,
    "score_key": "relevance_score",
    "prompt_depth": None,
    "query_weight": None,
    "evidence": None,
    "passes": 1,
    "explain": False,
    "stored_vectors": "check",
    "collection_name": None,
    "layout": {"id_key": None, "content_key": "page_content", "metadata_key": "metadata"},
    "vector_name": None,
}
OPEN_PARTS = {"client": None, "async_client": None, "vectorstore": None}
RETRIEVER = {
    "name": None,
    "tags": None,
    "metadata": None,
    "reranker": None,
    "k": 10,
    "retrieve_k": 100,
    "filter": None,
    "expand": False,
    "hybrid": None,
    "explain": False,
    "score_key": "relevance_score",
}
SOURCES = {"vectorstore": None, "base_retriever": None}
SEARCH = {"query": inspect.Parameter.empty, "k": 4, "filter": None}
DIVERSE = {**SEARCH, "fetch_k": 20, "lambda_mult": 0.5}
ADD = {"texts": inspect.Parameter.empty, "metadatas": None, "ids": None, "batch_size": 256}


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("self", "kwargs", "options")}


@pytest.mark.parametrize(
    ("component", "saved", "others"),
    [(E2RankEmbeddings, MODEL, {}), (E2RankReranker, RERANKER, OPEN_PARTS)],
)
def test_a_component_has_these_fields_with_these_defaults(component, saved, others):
    made = component()
    assert made.model_dump() == saved
    assert set(component.model_fields) == {*saved, *others}
    assert {name: getattr(made, name) for name in others} == others
    with pytest.raises(ValidationError):
        component(top_k=3)


def test_the_retriever_has_these_fields_with_these_defaults():
    fields = E2RankRetriever.model_fields
    assert {name: field.get_default() for name, field in fields.items()} == {**RETRIEVER, **SOURCES}
    retriever = E2RankRetriever(base_retriever=RunnableLambda(lambda query: []))
    assert retriever.model_dump() == {**RETRIEVER, "reranker": RERANKER}


def test_the_store_and_the_translator_have_these_parameters_with_these_defaults():
    none = inspect.Parameter.empty
    assert defaults(E2RankVectorStore) == {
        "embedding": none,
        "collection_name": "documents",
        "location": ":memory:",
        "api_key": None,
        "client": None,
        "stored_vectors": "check",
    }
    for method, expected in {
        "add_texts": ADD,
        "delete": {"ids": None},
        "similarity_search": {**SEARCH, "hybrid": False},
        "similarity_search_with_score": SEARCH,
        "max_marginal_relevance_search": DIVERSE,
    }.items():
        assert defaults(getattr(E2RankVectorStore, method)) == expected, method
    assert defaults(E2RankTranslator) == {"vectorstore": none, "filter": None}


@pytest.mark.parametrize(
    ("component", "methods"),
    [
        (E2RankEmbeddings, ["close", "encoder", "aencoder", "stated"]),
        (E2RankReranker, ["close", "rank", "arank", "ranking", "aranking", "opened"]),
        (E2RankRetriever, ["close"]),
        (E2RankVectorStore, ["close", "aclose", "store", "collection"]),
    ],
)
def test_what_a_component_offers_beside_langchains_methods(component, methods):
    has = {*dir(component), *(["collection"] if component is E2RankVectorStore else [])}
    assert set(methods) <= has
