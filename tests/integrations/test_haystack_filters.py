"""Haystack's filters in Qdrant, against Haystack's InMemoryDocumentStore."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import FilterPolicy
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter
from haystack_integrations.components.retrievers.e2rank._filters import (
    chosen_filters,
    qdrant_filter,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout

FIELDS = ["meta.a", "meta.b", "a", "meta.n.x", "meta.n.y.z", "meta.sp ace", "id", "content"]
INTEGERS = st.integers(-2, 3) | st.sampled_from([10, 2**53 - 1, 2**53 + 1, 2**60, -(2**63)])
FLOATS = st.sampled_from([-1.5, 0.0, -0.0, 0.5, 1.0, 2.0, 10.0, 2.0**53, 2.0**60, 1e300])
DATES = st.sampled_from(
    [
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-01-01T00:00:00Z",
        "2024-06-01 12:30:00",
        "2023-12-31",
    ]
)
# No digits: to Haystack "2024" is more or less than a date.
TEXTS = st.sampled_from(["", "x", "y", "true", "one"])
IDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | DATES | TEXTS
STORED = SCALARS | st.lists(SCALARS, min_size=1, max_size=3)
METAS = st.fixed_dictionaries(
    {},
    optional={
        "a": STORED,
        "b": STORED,
        "sp ace": SCALARS,
        "n": SCALARS
        | st.fixed_dictionaries(
            {}, optional={"x": STORED, "y": SCALARS | st.fixed_dictionaries({"z": STORED})}
        ),
    },
)
BOUNDS = st.none() | st.booleans() | st.integers(-2, 3) | FLOATS.filter(lambda f: f < 99) | DATES
COMPARISONS = st.one_of(
    st.builds(
        lambda field, operator, value: {"field": field, "operator": operator, "value": value},
        st.sampled_from(FIELDS),
        st.sampled_from(operators),
        values,
    )
    for operators, values in [
        (["==", "!="], SCALARS | st.just(datetime(2024, 1, 1, tzinfo=UTC))),
        (["in", "not in"], st.lists(SCALARS, max_size=3)),
        ([">", ">=", "<", "<="], BOUNDS),
    ]
)
TREES = st.recursive(
    COMPARISONS,
    lambda children: st.builds(
        lambda operator, parts: {"operator": operator, "conditions": parts},
        st.sampled_from(["AND", "OR", "NOT"]),
        st.lists(children, max_size=3),
    ),
    max_leaves=8,
)


DEFAULT = Layout()


@pytest.fixture(scope="module")
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


def found(client, documents, filters, layout=DEFAULT):
    if client.collection_exists("docs"):
        client.delete_collection("docs")
    client.create_collection(
        "docs", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT)
    )
    points = [
        models.PointStruct(
            id=number,
            vector=[1.0],
            payload={
                layout.id_key or "_": document.id,
                layout.content_key: document.content,
                layout.metadata_key: document.meta,
            },
        )
        for number, document in enumerate(documents)
    ]
    client.upsert("docs", points)
    native = qdrant_filter(filters, layout)
    hits, _ = client.scroll("docs", scroll_filter=native, limit=100)
    return {documents[hit.id].id for hit in hits}


def in_memory(document, filters):
    try:
        return document_matches_filter(filters, document)
    except (FilterError, TypeError):  # such as 3 > "x", for which Haystack has no answer
        return None


@settings(max_examples=300, deadline=None)
@given(metas=st.lists(METAS, min_size=3, max_size=6), filters=TREES)
def test_a_filter_means_what_it_says_in_memory(client, metas, filters):
    documents = [
        Document(id=id, content=content, meta=meta)
        for id, content, meta in zip(IDS, "xyxyxyxy", metas, strict=False)
    ]
    answers = found(client, documents, filters)
    for document in documents:
        expected = in_memory(document, filters)
        if expected is not None:
            assert (document.id in answers) == expected, document.meta


ACCESS = [
    Document(id="a", content="x", meta={"g": "a", "level": 1}),
    Document(id="b", content="x", meta={"g": "b", "level": 5}),
    Document(id="none", content="x", meta={"level": "high"}),
    Document(id="list", content="x", meta={"g": ["a"], "level": [5, 1]}),
]


def comparison(field, operator, value):
    return {"field": field, "operator": operator, "value": value}


def logic(operator, *conditions):
    return {"operator": operator, "conditions": list(conditions)}


A = comparison("meta.g", "==", "a")
LOW = comparison("meta.level", "<", 3)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (comparison("meta.g", "in", []), set()),
        (comparison("meta.g", "not in", []), {"a", "b", "none", "list"}),
        (logic("NOT", A, LOW), {"b", "none", "list"}),
        (logic("NOT", comparison("meta.g", "in", [])), {"a", "b", "none", "list"}),
        (logic("OR"), set()),
        (logic("AND", A, logic("OR")), set()),
        (logic("NOT"), set()),
        (comparison("meta.g", "==", None), {"none"}),
        (comparison("meta.g", "!=", None), {"a", "b", "list"}),
        (comparison("meta.g", "in", ["a", None]), {"a", "none"}),
        (comparison("g", "==", "b"), {"b"}),
        (comparison("id", "in", ["a", "b"]), {"a", "b"}),
    ],
)
def test_a_filter_never_widens(client, filters, expected):
    assert found(client, ACCESS, filters) == expected


def test_what_cannot_be_compared_is_not_in_a_negated_comparison(client):
    # In memory "high" and [5, 1] are errors here.
    assert found(client, ACCESS, logic("NOT", LOW)) == {"b"}
    assert found(client, ACCESS, logic("NOT", logic("NOT", LOW))) == {"a"}


@pytest.mark.parametrize("value", [0.5, 10, 10.0, 2**60, 2.0**60])
def test_an_equal_number_is_equal_however_it_is_written(client, value):
    documents = [
        Document(id="same", meta={"p": value}),
        Document(id="integer", meta={"p": int(value)}),
        Document(id="float", meta={"p": float(int(value))}),
        Document(id="near", meta={"p": int(value) + 1}),
    ]
    expected = {d.id for d in documents if d.meta["p"] == value}
    assert found(client, documents, comparison("meta.p", "==", value)) == expected
    assert found(client, documents, comparison("meta.p", "in", ["x", value])) == expected


@pytest.mark.parametrize(
    "layout", [LANGCHAIN_LAYOUT, Layout(id_key="key", content_key="body", metadata_key="my info")]
)
def test_content_id_and_meta_are_where_the_layout_has_them(client, layout):
    documents = [
        Document(id="a", content="x", meta={"content": "y"}),
        Document(id="b", content="y", meta={"content": "x"}),
    ]
    assert found(client, documents, comparison("content", "==", "x"), layout) == {"a"}
    assert found(client, documents, comparison("meta.content", "==", "x"), layout) == {"b"}
    by_id = comparison("id", "==", "b")
    if layout.id_key is None:
        with pytest.raises(FilterError, match="'id' "):
            qdrant_filter(by_id, layout)
    else:
        assert found(client, documents, by_id, layout) == {"b"}


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"g": "a"}, "no Haystack filter"),
        ([A], "no Haystack filter"),
        ("g == a", "no Haystack filter"),
        ({**A, "conditions": []}, "no Haystack filter"),
        ({"field": "meta.g", "operator": "=="}, "no Haystack filter"),
        (logic("AND", {"g": "a"}), "no Haystack filter"),
        (logic("and", A), "'and'"),
        ({"operator": "AND", "conditions": A}, "not a list"),
        (comparison("meta.g", "=", "a"), "unknown operator '='"),
        (comparison("meta.g", "in", "a"), "not a list"),
        (comparison("meta.g", "==", ["a"]), r"\['a'\]"),
        (comparison("meta.g", "in", [{"a": 1}]), "{'a': 1}"),
        (comparison("meta.g", "==", float("nan")), "nan"),
        (comparison("meta.g", "<", "b"), "'b'"),
        (comparison("meta.g", "<", [1]), r"\[1\]"),
        (comparison("meta.g", "<", 2**53), "9007199254740992"),
        (comparison("meta.g", "<", 10**400), "2\\*\\*53"),
        (comparison("meta.g", "==", 2**63), "64 bits"),
        (comparison("meta.a..b", "==", 1), "empty part"),
        (comparison('meta.a"b', "==", 1), 'holds a "'),
        (comparison("meta.a\\b", "==", 1), "holds a .* or a"),
        (comparison("meta.g", "==", "\ud800"), "surrogate"),
        (comparison("person.name", "==", 1), "meta.<name>"),
        (comparison("embedding", "==", None), "meta.<name>"),
        (comparison("meta", "==", None), "meta.<name>"),
        (comparison(3, "==", None), "3 is int"),
    ],
)
def test_what_qdrant_cannot_express_is_refused(filters, named):
    with pytest.raises(FilterError, match=named):
        qdrant_filter(filters, Layout())


def test_a_filter_nested_too_deep_is_refused():
    deep = A
    for _ in range(5000):
        deep = logic("AND", deep)
    with pytest.raises(FilterError, match="100 deep"):
        qdrant_filter(deep, Layout())


@pytest.mark.parametrize("operator", ["AND", "OR", "NOT"])
def test_a_chain_of_conditions_is_as_flat_as_servers_want_it(client, operator):
    chain = LOW
    for number in range(98):
        other = comparison("meta.g", "==" if operator == "OR" else "!=", f"no {number}")
        chain = logic(operator, chain) if operator == "NOT" else logic(operator, chain, other)
    native, levels = qdrant_filter(chain, Layout()), 0
    while isinstance(native, models.Filter):  # of some 40 that a server takes
        native, levels = (native.must or native.should or native.must_not)[0], levels + 1
    assert levels < 5
    assert found(client, ACCESS[:2], chain) == {"a"}


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_filter_is_none(nothing):
    assert qdrant_filter(nothing, Layout()) is None


@pytest.mark.parametrize("operator", ["OR", "NOT"])
@pytest.mark.parametrize("run", [LOW, logic("AND", LOW), logic("OR", LOW), logic("NOT", LOW)])
def test_a_merged_filter_keeps_both(client, operator, run):
    for one, other in ((logic(operator, A), run), (run, logic(operator, A))):
        merged = chosen_filters(FilterPolicy.MERGE, one, other)
        both = found(client, ACCESS, one) & found(client, ACCESS, other)
        assert found(client, ACCESS, merged) == both


def test_a_mistaken_filter_is_not_merged_away():
    for one, other in (({"g": "a"}, A), (A, {"g": "a"})):
        with pytest.raises(FilterError, match="no Haystack filter"):
            chosen_filters(FilterPolicy.MERGE, one, other)


def test_the_store_of_haystack_agrees(client):
    store = InMemoryDocumentStore()
    documents = ACCESS[:2]
    store.write_documents(documents)
    filters = logic("NOT", comparison("meta.level", ">", 3), A)
    assert {d.id for d in store.filter_documents(filters)} == found(client, documents, filters)
