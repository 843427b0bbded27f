"""p-values by full enumeration, their behaviour where nothing differs, and Holm's by hand."""

from __future__ import annotations

import random
import tracemalloc
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from e2rank_rag.evaluation import significance
from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test


def by_query(values):
    return {f"q{number}": value for number, value in enumerate(values)}


def p_of(differences, **options):
    """The test of values that differ by these, around 0.5."""
    a = [0.5 + difference for difference in differences]
    return paired_randomization_test(by_query(a), by_query([0.5] * len(a)), **options)


def enumerated(steps):
    """The p-value of whole-numbered differences over all sign patterns."""
    totals = [
        abs(sum(sign * step for sign, step in zip(signs, steps, strict=True)))
        for signs in product((1, -1), repeat=len(steps))
    ]
    return sum(total >= abs(sum(steps)) for total in totals) / len(totals)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.3], 1.0),  # one query says nothing: with the other sign it is as far from 0
        ([0.1, 0.2], 2 / 4),
        ([0.1, 0.1, 0.1], 2 / 8),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2 / 32),
        ([0.1, -0.1], 1.0),
        ([0.1, 0.3, -0.1], 6 / 8),  # 0.5 or 0.3 from 0, but for ±(0.1, -0.3, 0.1)
    ],
)
def test_few_queries_are_enumerated(differences, p):
    assert p_of(differences) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_ties_count_as_far_from_zero_whatever_their_last_bits(seed):
    random.seed(seed)
    steps = [random.randint(-4, 4) for _ in range(random.randint(1, 9))]
    # In tenths, where equal sums differ in floating point.
    assert p_of([step / 10 for step in steps]) == pytest.approx(enumerated(steps), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_random_signs_come_close_to_all_signs(seed):
    random.seed(seed)
    differences = [random.gauss(0.02, 0.1) for _ in range(12)]
    exact = p_of(differences, rounds=2**12)
    estimate = p_of(differences, rounds=2**12 - 1, seed=seed)
    assert estimate != exact
    assert abs(estimate - exact) < 4 * (exact * (1 - exact) / 2**12) ** 0.5 + 1 / 2**12


@pytest.mark.parametrize("seed", range(5))
def test_many_queries_give_nearly_the_p_of_the_t_test(seed):
    rng = np.random.default_rng(seed)
    differences = rng.normal(0.005, 0.1, size=500)
    expected = ttest_1samp(differences, 0).pvalue
    assert p_of(differences, rounds=20_000) == pytest.approx(expected, abs=0.015)


def test_the_p_value_is_never_zero():
    assert p_of([0.1] * 60, rounds=999) == 1 / 1000


def test_the_same_values_have_p_one():
    values = by_query([0.2, 0.0, 0.7])
    assert paired_randomization_test(values, dict(values)) == 1.0


def test_queries_without_a_difference_change_nothing():
    some = [0.3, -0.1, 0.2, 0.25]
    assert p_of([0.0] * 50 + some) == p_of(some)


@pytest.mark.parametrize("count", [6, 40])
def test_the_two_systems_may_change_places(count):
    random.seed(count)
    a, b = (by_query(random.random() for _ in range(count)) for _ in range(2))
    options = {"rounds": 2000, "seed": 3}
    assert paired_randomization_test(a, b, **options) == paired_randomization_test(b, a, **options)


def test_queries_are_paired_by_their_id():
    random.seed(0)
    a, b = (by_query(random.random() for _ in range(8)) for _ in range(2))
    shuffled = dict(sorted(b.items(), key=lambda item: item[1]))
    assert list(shuffled) != list(b)
    assert paired_randomization_test(a, shuffled) == paired_randomization_test(a, b)


@pytest.mark.parametrize("unit", [100.0, 1e-15])
def test_the_unit_of_the_values_does_not_matter(unit):
    random.seed(1)
    values = by_query(random.gauss(0.02, 0.1) for _ in range(30))
    scaled = {query: unit * value for query, value in values.items()}
    zeros = dict.fromkeys(values, 0.0)
    assert paired_randomization_test(scaled, zeros, rounds=2000) == paired_randomization_test(
        values, zeros, rounds=2000
    )


def test_the_seed_settles_the_answer():
    random.seed(2)
    differences = [random.gauss(0.02, 0.1) for _ in range(30)]
    p_values = [p_of(differences, rounds=2000, seed=seed) for seed in (0, 0, 1)]
    assert p_values[0] == p_values[1] != p_values[2]


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    p_values = [p_of(rng.normal(size=25), rounds=199) for _ in range(400)]
    # Within four standard errors of what a uniform value has.
    assert abs(fmean(p_values) - 0.5) < 4 * (1 / 12 / 400) ** 0.5
    for level in (0.05, 0.25, 0.5, 0.75):
        share = fmean(p <= level for p in p_values)
        assert abs(share - level) < 4 * (level * (1 - level) / 400) ** 0.5


def test_memory_does_not_grow_with_the_rounds(monkeypatch):
    random.seed(4)
    differences = [random.gauss(0.0, 0.1) for _ in range(250)]
    whole = p_of(differences, rounds=1000)
    monkeypatch.setattr(significance, "_SIGNS_AT_ONCE", 2500)
    tracemalloc.start()
    try:
        assert p_of(differences, rounds=1000) == whole
        assert tracemalloc.get_traced_memory()[1] < 1e6  # the signs alone are 250,000 numbers
    finally:
        tracemalloc.stop()


def test_the_values_per_query_of_two_runs_can_be_tested():
    qrels = {f"q{number}": {"a": 1} for number in range(6)}
    runs = (
        {query: dict(zip(order, (2.0, 1.0), strict=True)) for query in qrels}
        for order in ("ab", "ba")
    )
    one, other = (
        {query: values["RR@10"] for query, values in evaluate_by_query(run, qrels).items()}
        for run in runs
    )
    assert paired_randomization_test(one, other) == 2 / 2**6


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({}, {}, "got 0 and 0 queries, 0 of them in one only$"),
        ({"q": 1.0}, {"r": 1.0}, "got 1 and 1 queries, 2 of them in one only, such as 'q'"),
        ({"q": 1.0}, {"q": 1.0, "r": 1.0}, "1 of them in one only, such as 'r'"),
        ({"q": 1.0, "r": float("nan")}, {"q": 1.0, "r": 0.5}, "query 'r' are nan and 0.5"),
        ({"q": 1.0}, {"q": float("inf")}, "query 'q' are 1.0 and inf"),
    ],
)
def test_values_that_cannot_be_paired_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_randomization_test(a, b)


def test_less_than_one_round_is_refused():
    with pytest.raises(ValueError, match="rounds must be 1 or more, got 0"):
        p_of([0.1], rounds=0)


# Holm


def test_holm_multiplies_the_smallest_by_the_most():
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    adjusted = holm_correction(p_values)
    # d: 4 * 0.005, a: 3 * 0.01, c: 2 * 0.03, and b no less than c.
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == list(p_values)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.4, 0.6], [0.8, 0.8]),
        ([0.9, 0.9, 0.5], [1.0, 1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm_of_ties_bounds_and_few_values(p_values, adjusted):
    assert list(holm_correction(by_query(p_values)).values()) == pytest.approx(adjusted)


@pytest.mark.parametrize("seed", range(20))
def test_holm_rejects_what_stepping_down_rejects(seed):
    random.seed(seed)
    p_values = by_query(random.random() ** 3 for _ in range(8))
    adjusted = holm_correction(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
            if p_values[name] > level / (len(p_values) - place):
                break
            rejected.add(name)
        assert {name for name, p in adjusted.items() if p <= level} == rejected


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match=f"p-value of 'b' must be between 0 and 1, got {p}"):
        holm_correction({"a": 0.5, "b": p})
