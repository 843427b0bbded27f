"""Conditions on numbers, against Python's comparisons, in a real (in-memory) collection."""

from __future__ import annotations

import operator
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from e2rank_rag.store.filters import to_qdrant_filter

NUMBERS = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-3, 3).map(float)
    | st.sampled_from([2**53, 2**53 + 1, 2.0**53, 10**18, 1e18, 2.0**63])
)
VALUES = NUMBERS | st.booleans() | st.none() | st.sampled_from(["", "1", "true"])
OPERATORS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


@pytest.fixture(scope="module")
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


def found(client, values, filter):
    """The places of the values that meet a filter on `p`."""
    native = to_qdrant_filter(filter, "meta")
    if client.collection_exists("c"):
        client.delete_collection("c")
    client.create_collection(
        "c", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT)
    )
    client.upsert(
        "c",
        [
            models.PointStruct(id=place, vector=[1.0], payload={"meta": {"p": value}})
            for place, value in enumerate(values)
        ],
    )
    points, _ = client.scroll("c", scroll_filter=native, limit=len(values))
    return {point.id for point in points}


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def equal(value, other):
    """As JSON has it: true is no number."""
    return is_number(value) == is_number(other) and value == other


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(VALUES, min_size=1, max_size=6),
    others=st.lists(VALUES.filter(lambda v: v is not None), min_size=1, max_size=3),
)
def test_an_equal_number_is_equal(client, values, others):
    values = [*values, *others]  # so that some are
    values += [float(v) for v in others if is_number(v)]
    values += [int(v) for v in others if is_number(v) and isfinite(v) and abs(v) < 2**63]
    assert found(client, values, {"p": others}) == {
        place for place, v in enumerate(values) if any(equal(v, other) for other in others)
    }
    assert found(client, values, {"p": others[0]}) == {
        place for place, v in enumerate(values) if equal(v, others[0])
    }


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(VALUES, min_size=1, max_size=6),
    bounds=st.dictionaries(st.sampled_from(list(OPERATORS)), NUMBERS, min_size=1, max_size=2),
)
def test_a_range_is_exact_or_refused(client, values, bounds):
    values = [*values, *bounds.values()]
    beyond = [b for b in bounds.values() if 2**53 <= abs(b) <= 2**63]
    if beyond:
        with pytest.raises(ValueError, match="2\\*\\*53"):
            to_qdrant_filter({"p": bounds}, "meta")
        return
    assert found(client, values, {"p": bounds}) == {
        place
        for place, value in enumerate(values)
        if is_number(value) and all(OPERATORS[sign](value, bound) for sign, bound in bounds.items())
    }


@pytest.mark.parametrize("bound", [2**53, -(2**53), 2**53 + 1, 2**60, 1e17, 2**63, 10**400])
def test_a_bound_that_a_double_cannot_hold_is_refused(bound):
    with pytest.raises(ValueError, match=r"'p' has the bound .*2\*\*53.*native|models\.Filter"):
        to_qdrant_filter({"p": {"gte": bound}}, "meta")


@pytest.mark.parametrize("integer", [2**63, -(2**63) - 1, 10**400])
def test_an_integer_that_no_store_holds_is_refused(integer):
    with pytest.raises(ValueError, match="64 bits"):
        to_qdrant_filter({"p": integer}, "meta")
    with pytest.raises(ValueError, match="64 bits"):
        to_qdrant_filter({"p": [1, integer]}, "meta")


@pytest.mark.parametrize("integer", [2**53, 2**60, -(2**62), -(2**63), 10**18])
def test_an_integer_is_told_from_those_that_round_to_it(integer):
    (condition,) = to_qdrant_filter({"p": integer}, "meta").must
    exact, rounded = condition.should
    assert exact.match.value == integer
    (others,) = rounded.must_not
    step = 1 if integer == 2**53 else 128
    near = {integer + offset for offset in range(-step, step + 1) if offset}
    near = {n for n in near if n >= -(2**63)}  # what a server takes in a filter
    assert {n for n in near if float(n) == integer} <= set(others.match.any)
    assert all(float(n) == integer and n != integer for n in others.match.any)
    assert min(others.match.any) >= -(2**63)


def test_a_long_list_of_numbers_is_a_filter_that_servers_take(client):
    native = to_qdrant_filter({"p": [*range(10_000)]}, "meta")
    assert found(client, [-1, 0, 0.5, 7777, 7777.0, 9999, 10_000], {"p": [*range(10_000)]}) == {
        1,
        3,
        4,
        5,
    }
    assert levels(native.model_dump()) < 20  # of 128


def levels(value):
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(levels, below), default=0)
