"""What records compute from what they hold."""

from __future__ import annotations

import pytest

from e2rank_rag.report.records import Order
from tests.report.parts import case, dataset, methods, report


def test_the_mean_is_that_of_the_datasets_means():
    one = dataset("one", methods=methods({"hybrid": [0.2, 0.4], "listwise": [0.4, 0.6]}))
    two = dataset("two", methods=methods({"hybrid": [0.9], "listwise": [0.7]}))
    both = report(one, two, without=("two",))
    assert both.mean("hybrid") == pytest.approx((0.3 + 0.9) / 2)
    assert both.mean("listwise") == pytest.approx((0.5 + 0.7) / 2)
    assert both.mean("hybrid", without=True) == pytest.approx(0.3)
    assert report(one, without=("one",)).mean("hybrid", without=True) is None


def test_the_spread_of_an_order_is_its_highest_value_minus_its_lowest():
    assert Order(0.5, (0.4, 0.6), 0.3).spread == pytest.approx(0.3)
    assert Order(0.7, (0.4, 0.6), 0.5).spread == pytest.approx(0.3)


def test_a_gain_is_after_minus_before():
    assert case(before=0.25, after=1.0).gain == 0.75
