"""Sides take turns, and a ratio is taken pair by pair."""

from __future__ import annotations

import pytest

from e2rank_rag.bench.pairs import Timed, alternate, percentiles, ratio, spread, timed


def test_every_second_round_goes_in_the_reverse_order():
    asked = []

    def side(name):
        return lambda: asked.append(name) or Timed(1.0, 1.0, name)

    rounds = alternate({name: side(name) for name in "abc"}, 3)
    assert asked == [*"abc", *"cba", *"abc"]
    assert [[*each] for each in rounds] == [[*"abc"]] * 3
    assert rounds[1]["a"].result == "a"


def test_a_ratio_is_of_each_pair_and_not_of_the_medians():
    rounds = [
        {"ours": Timed(1.0, 4.0), "theirs": Timed(3.0, 4.0)},
        {"ours": Timed(2.0, 4.0), "theirs": Timed(2.0, 8.0)},
        {"ours": Timed(4.0, 4.0), "theirs": Timed(6.0, 2.0)},
    ]
    found = ratio(rounds, "ours", "theirs")
    assert found == {"worst": 1.0, "median": 1.5, "best": 3.0, "pairs": [3.0, 1.0, 1.5]}
    assert ratio(rounds, "ours", "theirs", "process")["pairs"] == [1.0, 2.0, 0.5]


def test_percentiles_are_values_that_were_measured():
    assert percentiles([*range(1, 101)]) == {"p50": 50, "p99": 99, "calls": 100}
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0, "calls": 3}
    assert percentiles([5.0]) == {"p50": 5.0, "p99": 5.0, "calls": 1}


def test_a_spread_has_the_least_the_median_and_the_most():
    assert spread([4.0, 1.0, 2.0, 3.0]) == {"min": 1.0, "median": 2.5, "max": 4.0}


def test_a_timed_call_gives_its_result_and_passes_its_error_on():
    assert timed(lambda: "done").result == "done"
    with pytest.raises(ZeroDivisionError):
        timed(lambda: 1 / 0)
