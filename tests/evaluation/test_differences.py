"""Wins, losses, ties and p-values of methods, by hand and by the tests they are made of."""

from __future__ import annotations

import pytest

from e2rank_rag.evaluation.differences import Differences, differences
from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test

BASE = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5, "f": 0.6, "g": 0.7}
ABOVE = {query: value + 0.1 for query, value in BASE.items()}
MIXED = {**BASE, "a": 0.9, "b": 0.1}


def test_wins_losses_and_ties_are_queries_above_below_and_level():
    found = differences({"mixed": (MIXED, BASE), "above": (ABOVE, BASE), "same": (BASE, BASE)})
    counts = {name: (each.wins, each.losses, each.ties) for name, each in found.items()}
    assert counts == {"mixed": (1, 1, 5), "above": (7, 0, 0), "same": (0, 0, 7)}


def test_p_is_that_of_the_randomisation_test_and_corrected_over_all_pairs():
    pairs = {"mixed": (MIXED, BASE), "above": (ABOVE, BASE), "same": (BASE, BASE)}
    found = differences(pairs)
    p = {name: paired_randomization_test(*pair) for name, pair in pairs.items()}
    # All seven differences are equal and of one sign: 2 of 2^7 patterns are as far from 0.
    assert p["above"] == 2 / 128
    assert {name: each.p for name, each in found.items()} == p
    assert {name: each.p_holm for name, each in found.items()} == holm_correction(p)
    assert found["above"].p_holm == pytest.approx(3 * 2 / 128)


def test_a_difference_is_significant_below_five_percent_after_the_correction():
    three = {"above": (ABOVE, BASE), "same": (BASE, BASE), "mixed": (MIXED, BASE)}
    four = {**three, "again": (BASE, BASE)}
    assert [each.significant for each in differences(three).values()] == [True, False, False]
    assert not differences(four)["above"].significant  # 4 * 2 / 128 is 0.0625


def test_the_same_values_give_the_same_p():
    one = {str(query): (query * 37 % 101) / 101 for query in range(40)}
    other = {str(query): (query * 53 % 103) / 103 for query in range(40)}
    first = differences({"one": (one, other)})
    assert first == differences({"one": (one, other)})
    assert 0 < first["one"].p < 1


def queries(first, second):
    return {query: {"nDCG@10": first[query], "R@100": second[query]} for query in BASE}


def test_every_method_is_compared_with_one_for_each_measure():
    by_query = {
        "retrieve": queries(BASE, BASE),
        "rocchio": queries(ABOVE, BASE),
        "listwise": queries(MIXED, ABOVE),
    }
    found = Differences.of(by_query, "retrieve")
    assert found.against == "retrieve"
    assert list(found.by_method) == ["rocchio", "listwise"]
    assert found.by_method["rocchio"]["nDCG@10"].wins == 7
    assert found.by_method["rocchio"]["R@100"].ties == 7
    first = differences({"rocchio": (ABOVE, BASE), "listwise": (MIXED, BASE)})
    second = differences({"rocchio": (BASE, BASE), "listwise": (ABOVE, BASE)})
    for method, by in found.by_method.items():
        assert by == {"nDCG@10": first[method], "R@100": second[method]}


def test_the_correction_is_over_the_methods_of_one_measure():
    by_query = {"retrieve": queries(BASE, BASE), "listwise": queries(ABOVE, ABOVE)}
    found = Differences.of(by_query, "retrieve").by_method["listwise"]
    assert [each.p_holm for each in found.values()] == [2 / 128, 2 / 128]


def test_one_method_alone_differs_from_none():
    assert Differences.of({"retrieve": queries(BASE, BASE)}, "retrieve").by_method == {}


def test_a_method_that_was_not_measured_is_refused_with_those_that_were():
    with pytest.raises(ValueError, match=r"one of \['retrieve'\], got 'hybrid'"):
        Differences.of({"retrieve": queries(BASE, BASE)}, "hybrid")


def test_methods_of_different_queries_are_refused():
    fewer = {query: values for query, values in queries(BASE, BASE).items() if query != "a"}
    with pytest.raises(ValueError, match="same queries"):
        Differences.of({"retrieve": queries(BASE, BASE), "listwise": fewer}, "retrieve")
