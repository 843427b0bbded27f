"""The plots hold what was measured: places by the figures, and nothing where nothing is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from e2rank_rag.report import plots
from e2rank_rag.report.records import Order
from tests.report.parts import dataset, methods, prompts, report


def coordinates(line):
    return [tuple(map(float, pair.split(","))) for pair in line.points.split()]


def test_quality_and_latency_has_a_dot_for_each_method_by_its_figures():
    plot = plots.quality_and_latency(report())
    assert len(plot.dots) == 5
    best = min(plot.dots, key=lambda dot: dot.y)  # the highest on the page
    assert best.title == "listwise: 55.0 in 10.0 ms"
    assert best.look == "subject"


def test_gains_are_sorted_bars_of_one_query_each():
    figures = methods({"hybrid": [0.5, 0.5, 0.5, 0.5], "listwise": [0.4, 0.5, 1.0, 0.7]})
    one = dataset(methods=figures)
    plot = plots.gains(report(one), one, 50.0)
    gain, loss = (line for line in plot.lines if line.closed)
    zero, top = coordinates(gain)[0][1], coordinates(gain)[1][1]
    heights = [round((zero - y) / (zero - top) * 50, 1) for _, y in coordinates(gain)]
    assert heights == [0, 50, 50, 20, 20, 0]
    assert [round((zero - y) / (zero - top) * 50, 1) for _, y in coordinates(loss)] == [
        0, -10, -10, 0,
    ]  # fmt: skip
    assert any("4 queries: 2 better, 1 equal, 1 worse" in label.text for label in plot.labels)


def test_the_widest_gain_is_rounded_up_to_tens():
    def widest(listwise):
        values = {"hybrid": [0.5, 0.5], "listwise": [0.5, listwise]}
        return plots.widest_gain(report(dataset(methods=methods(values))))

    assert [widest(0.5), widest(0.81), widest(0.0)] == [10, 40, 50]


def test_the_depth_sweep_has_a_curve_for_each_dataset_and_their_mean():
    plot = plots.depth_sweep(report(dataset("one"), dataset("two")))
    curves = [line for line in plot.lines if line.look.startswith("curve")]
    assert [line.title for line in curves] == ["one", "two", "mean"]
    assert [len(coordinates(line)) for line in curves] == [3, 3, 3]
    titles = [dot.title for dot in plot.dots[:3]]
    assert titles == ["one: 0", "one: +10", "one: +5"]
    assert [label.text for label in plot.labels if label.look == "strong"] == ["5"]


def test_without_prompts_there_is_no_depth_sweep():
    assert plots.depth_sweep(report(dataset(prompts=None))) is None


def test_the_order_strip_shows_orders_that_change_something():
    plot = plots.order_strip(report(dataset("one")))
    assert [label.text for label in plot.labels if "one" in label.text] == [
        "one: documents in the prompt"
    ]
    assert [dot.title for dot in plot.dots] == [
        "shuffled: \u22121",
        "shuffled: +1",
        "shuffled: 0",
        "shuffled: 0",
        "shuffled: 0",
        "reversed: \u22122",
    ]
    same = Order(0.5, (0.5,) * 5, 0.5)
    assert plots.order_strip(report(dataset(order=same, prompts=prompts(order=same)))) is None
    assert plots.order_strip(report(dataset(order=None, prompts=None))) is None


@pytest.mark.parametrize("names", [["a" * 30, "b"], list("abcdefgh")])
def test_names_at_the_ends_of_curves_do_not_cover_each_other(names):
    plot = plots.depth_sweep(report(*map(dataset, names)))
    ends = [label.y for label in plot.labels if label.anchor == "start" and not label.look]
    assert all(later - earlier >= 11 for earlier, later in pairwise(ends))
