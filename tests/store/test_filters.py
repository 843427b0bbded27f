"""Plain filters: what they become, and what they find in a real (in-memory) collection."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from qdrant_client import QdrantClient, models

from e2rank_rag.store.filters import to_qdrant_filter

META = {
    "early": {"year": 1999, "score": 0.25, "tags": ["a"], "draft": True, "date": "2024-01-01"},
    "middle": {
        "year": 2005,
        "score": 0.5,
        "tags": ["a", "b"],
        "draft": False,
        "date": "2024-06-01",
    },
    "late": {"year": 2024, "score": 0.75, "tags": ["c"], "draft": False, "date": "2025-01-01"},
}
NESTED = {
    "early": {"source": {"kind": "web"}, "page number": 1},
    "middle": {"source": {"kind": "book"}, "page number": 2},
    "late": {},
}


@pytest.fixture(scope="module")
def client():
    client = QdrantClient(":memory:")
    client.create_collection(
        "c", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE)
    )
    client.upsert(
        "c",
        [
            models.PointStruct(
                id=i, vector=[1.0, 0.0], payload={"id": name, "meta": META[name] | NESTED[name]}
            )
            for i, name in enumerate(META)
        ],
    )
    yield client
    client.close()


def found(client, filter):
    points, _ = client.scroll("c", scroll_filter=to_qdrant_filter(filter, "meta"))
    return {point.payload["id"] for point in points}


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"year": 2005}, {"middle"}),
        ({"date": "2025-01-01"}, {"late"}),
        ({"draft": True}, {"early"}),
        ({"score": 0.5}, {"middle"}),
        ({"tags": "a"}, {"early", "middle"}),
        ({"tags": ["b", "c"]}, {"middle", "late"}),
        ({"year": [1999, 2024]}, {"early", "late"}),
        ({"score": [0.25, 0.75]}, {"early", "late"}),
        ({"draft": [True, False]}, {"early", "middle", "late"}),
        ({"year": [1999, "2005"]}, {"early"}),
        ({"year": {"gt": 1999}}, {"middle", "late"}),
        ({"year": {"gte": 1999, "lt": 2024}}, {"early", "middle"}),
        ({"score": {"lte": 0.5}}, {"early", "middle"}),
        ({"date": {"gte": "2024-06-01"}}, {"middle", "late"}),
        ({"date": {"gt": "2024-01-01T00:00:00Z", "lt": "2025-01-01"}}, {"middle"}),
        ({"source.kind": "book"}, {"middle"}),
        ({"page number": 1}, {"early"}),
        ({"year": {"gte": 2000}, "draft": False, "tags": "c"}, {"late"}),
        ({"unknown": 1}, set()),
        ({}, {"early", "middle", "late"}),
    ],
)
def test_filter_finds(client, filter, expected):
    assert found(client, filter) == expected


def test_no_filter_is_none():
    assert to_qdrant_filter(None, "meta") is None
    assert to_qdrant_filter({}, "meta") is None


def test_native_filter_passes_through():
    native = models.Filter(must=[models.HasIdCondition(has_id=[1])])
    assert to_qdrant_filter(native, "meta") is native


def test_keys_are_looked_up_under_the_metadata_key():
    (condition,) = to_qdrant_filter({"id": "x"}, "metadata").must
    assert condition.key == "metadata.id"


def test_float_is_a_closed_range():
    (condition,) = to_qdrant_filter({"score": 0.5}, "meta").must
    assert condition.range == models.Range(gte=0.5, lte=0.5)


def test_date_strings_become_a_date_range():
    (condition,) = to_qdrant_filter({"date": {"gte": "2024-06-01T12:00:00"}}, "meta").must
    assert condition.range == models.DatetimeRange(gte=datetime(2024, 6, 1, 12))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "None"),
        ({"eq": 3}, "eq"),
        ({}, "{}"),
        ({"gte": None}, "None"),
        ({"gte": 1, "lt": "2024-01-01"}, "2024-01-01"),
        ({"gte": True}, "True"),
        ({"gte": "yesterday"}, "yesterday"),
        ({"gte": {"lt": 1}}, "'lt': 1"),
        ([None], "None"),
        ([["a"]], r"\['a'\]"),
        ([{"gte": 1}], "gte"),
        (float("nan"), "nan"),
        ({"gte": float("inf")}, "inf"),
        (datetime(2024, 1, 1), "datetime"),
        ({1, 2}, "{1, 2}"),
        (b"bytes", "bytes"),
    ],
)
def test_other_conditions_are_refused_with_key_value_and_accepted_forms(value, named):
    with pytest.raises(ValueError, match=f"(?s)'field'.*{named}.*ISO date"):
        to_qdrant_filter({"field": value}, "meta")


@pytest.mark.parametrize("value", ["\ud800", ["x", "\ud800"]])
def test_a_text_that_no_store_can_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"filter 'field' is .*half of a surrogate pair"):
        to_qdrant_filter({"field": value}, "meta")


def test_empty_any_of_is_refused():
    with pytest.raises(ValueError, match="'tag' is any of an empty list"):
        to_qdrant_filter({"tag": []}, "meta")


@pytest.mark.parametrize("key", ["", ".a", "a..b", 3, 'a"b', "a\\b", "a\ud800"])
def test_keys_that_are_no_path_are_refused(key):
    with pytest.raises(ValueError, match=f"filter .*{re.escape(repr(key))}"):
        to_qdrant_filter({key: 1}, "meta")


@pytest.mark.parametrize("filter", [["year", 2024], "year=2024", 3])
def test_what_is_no_dict_is_refused(filter):
    with pytest.raises(ValueError, match="not a dict"):
        to_qdrant_filter(filter, "meta")


@pytest.mark.parametrize(
    "filter",
    [
        {"field": "meta.year", "operator": "in", "value": []},
        {"field": "meta.year", "operator": "=="},
        {"operator": "AND", "conditions": [{"field": "id", "operator": "==", "value": "a"}]},
    ],
)
def test_the_form_of_haystack_is_refused_and_named(filter):
    with pytest.raises(ValueError, match="Haystack's form"):
        to_qdrant_filter(filter, "meta")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a_b-1", "meta.a_b-1"),
        ("straße", 'meta."straße"'),
        ("page number.x", 'meta."page number".x'),
        ("pages[].number", "meta.pages[].number"),
        ("page numbers[0]", 'meta."page numbers"[0]'),
    ],
)
def test_a_key_is_quoted_where_a_path_needs_it(client, key, path):
    (condition,) = to_qdrant_filter({key: "x"}, "meta").must
    assert condition.key == path
    assert found(client, {key: "x"}) == set()
