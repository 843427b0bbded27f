"""A second pool of threads is an error where it costs too much."""

from __future__ import annotations

import pytest

from e2rank_rag.bench.pools import CALLER, HELD, SecondPool, check
from e2rank_rag.bench.query import AS_IT_COMES


def test_a_second_pool_that_costs_more_than_the_limit_is_an_error(result):
    part = result["parts"]["pools"]
    assert part["sides"].keys() == {AS_IT_COMES, HELD, CALLER}
    check({**part, "as_it_comes_over_held": {"median": 1.15}})
    with pytest.raises(SecondPool, match=r"1\.16 times as long"):
        check({**part, "as_it_comes_over_held": {"median": 1.16}})
