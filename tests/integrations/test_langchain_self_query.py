"""E2RankTranslator in LangChain's SelfQueryRetriever: what a query's conditions find."""

from __future__ import annotations

import pytest
from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import (
    Comparator,
    Comparison,
    Operation,
    Operator,
    StructuredQuery,
)
from langchain_e2rank import E2RankEmbeddings, E2RankTranslator, E2RankVectorStore

from e2rank_rag.store import LANGCHAIN_LAYOUT

METADATA = {
    "old": {"year": 1999, "tags": ["a"], "tenant": "x", "date": "2024-01-01"},
    "mid": {"year": 2005.0, "tags": ["a", "b"], "tenant": "y", "date": "2024-06-01T12:00:00"},
    "new": {"year": 2024, "tags": ["c"], "tenant": "x", "date": "2025-01-01", "nested": {"k": "v"}},
    "bare": {"tenant": "x"},
}


@pytest.fixture(scope="module")
def embeddings(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    yield embeddings
    embeddings.close()


@pytest.fixture(scope="module", params=["ours", "langchain"])
def store(embeddings, request):
    ours = request.param == "ours"
    options = {} if ours else {"layout": LANGCHAIN_LAYOUT}
    ids = list(METADATA) if ours else [str(number) for number in range(len(METADATA))]
    store = E2RankVectorStore(embeddings, **options)
    store.add_documents(
        [
            Document(id=id, page_content=f"text of {name}", metadata={"name": name, **metadata})
            for id, (name, metadata) in zip(ids, METADATA.items(), strict=True)
        ]
    )
    yield store
    store.close()


def compare(comparator, attribute, value):
    return Comparison(comparator=Comparator(comparator), attribute=attribute, value=value)


def operation(operator, *arguments):
    return Operation(operator=Operator(operator), arguments=list(arguments))


def self_query(store, filter, limit=None, *, translator=None, **options):
    """The retriever where a language model has understood a question so."""
    understood = StructuredQuery(query="text", filter=filter, limit=limit)
    return SelfQueryRetriever(
        vectorstore=store,
        query_constructor=RunnableLambda(lambda _: understood),
        structured_query_translator=translator or E2RankTranslator(store),
        search_kwargs={"k": 4, **options},
    )


def names(documents):
    return {document.metadata["name"] for document in documents}


YEAR = compare("gte", "year", 2005)
TAG = compare("eq", "tags", "a")


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (None, {"old", "mid", "new", "bare"}),
        (compare("eq", "year", 2005), {"mid"}),
        (compare("ne", "year", 2005), {"old", "new", "bare"}),
        (compare("gt", "year", 2005), {"new"}),
        (YEAR, {"mid", "new"}),
        (compare("lt", "year", 2005), {"old"}),
        (compare("lte", "year", 2005), {"old", "mid"}),
        (TAG, {"old", "mid"}),
        (compare("in", "tags", ["b", "c"]), {"mid", "new"}),
        (compare("nin", "tags", ["b", "c"]), {"old", "bare"}),
        (compare("eq", "nested.k", "v"), {"new"}),
        (compare("eq", "date", {"date": "2024-01-01", "type": "date"}), {"old"}),
        (compare("gt", "date", {"date": "2024-01-01", "type": "date"}), {"mid", "new"}),
        (
            compare("in", "date", [{"datetime": "2024-06-01T12:00:00", "type": "datetime"}]),
            {"mid"},
        ),
        (operation("and", YEAR, TAG), {"mid"}),
        (operation("or", YEAR, TAG), {"old", "mid", "new"}),
        (operation("not", operation("and", YEAR, TAG)), {"old", "new", "bare"}),
        (operation("not", operation("or", YEAR, TAG)), {"bare"}),
    ],
)
async def test_the_conditions_of_a_query_find_what_they_say(store, filter, expected):
    retriever = self_query(store, filter)
    assert names(retriever.invoke("a question")) == expected
    assert names(await retriever.ainvoke("a question")) == expected


def test_the_limit_of_a_query_counts(store):
    assert len(self_query(store, TAG, limit=1).invoke("a question")) == 1


def test_a_fixed_filter_holds_in_every_query(store):
    translator = E2RankTranslator(store, filter={"tenant": "x"})
    for filter, expected in (
        (None, {"old", "new", "bare"}),
        (TAG, {"old"}),
        (compare("eq", "tenant", "y"), set()),
        (operation("or", TAG, compare("eq", "tenant", "y")), {"old"}),
    ):
        found = self_query(store, filter, translator=translator).invoke("a question")
        assert names(found) == expected


@pytest.mark.parametrize(
    ("filter", "named"),
    [
        (compare("like", "tags", "a"), "disallowed comparator"),
        (compare("contain", "tags", "a"), "disallowed comparator"),
        (compare("in", "tags", []), "list of values"),
        (compare("nin", "tags", []), "list of values"),
        (compare("in", "tags", "a"), "list of values"),
        (compare("eq", "tags", ["a"]), "cannot be equal"),
        (compare("eq", "tags", None), "cannot be None"),
        (compare("gt", "year", "late"), "'late' is no ISO date"),
        (operation("or"), "'or' of 0 conditions"),
        (operation("and"), "'and' of 0 conditions"),
        (operation("not", TAG, YEAR), "'not' of 2 conditions"),
    ],
)
def test_what_has_no_meaning_is_refused(store, filter, named):
    with pytest.raises(ValueError, match=named):
        self_query(store, filter).invoke("a question")
