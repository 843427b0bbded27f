"""Places of values on a plot, round steps, and labels that do not cover each other."""

from __future__ import annotations

import pytest

from e2rank_rag.report.drawing import (
    FONT,
    Axis,
    Dot,
    Plot,
    log_steps,
    number,
    place_labels,
    steps,
)


def test_an_axis_places_values_in_proportion():
    axis = Axis(10, 20, 100, 0)
    assert [axis.at(value) for value in (10, 15, 20)] == [100, 50, 0]


def test_a_logarithmic_axis_places_values_by_their_ratio():
    axis = Axis(1, 100, 0, 200, logarithmic=True)
    assert [axis.at(value) for value in (1, 10, 100)] == [0, 100, 200]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (-3, 3, [-2, 0, 2]),
        (0.31, 0.33, [0.31, 0.315, 0.32, 0.325, 0.33]),
    ],
)
def test_steps_are_round_and_within_their_bounds(low, high, expected):
    assert steps(low, high) == pytest.approx(expected)


def test_logarithmic_steps_are_one_two_and_five():
    assert log_steps(3, 120) == [5, 10, 20, 50, 100]


def test_numbers_have_a_sign_where_asked_and_a_true_minus():
    assert [number(2, True), number(0, True), number(-0.5), number(3)] == [
        "+2",
        "0",
        "\u22120.5",
        "3",
    ]


@pytest.mark.parametrize("x", [20.0, 180.0, 340.0])
def test_labels_of_dots_at_one_place_lie_apart_and_inside(x):
    plot = Plot("t", 250)
    place_labels(plot, [(Dot(x, 120.0, "other"), "untrained prompt") for _ in range(6)])
    boxes = [(label.x, label.y, label.x + 0.56 * FONT * len(label.text)) for label in plot.labels]
    assert len(boxes) == len(plot.dots) == 6
    assert all(left >= 0 and right <= plot.width + 0.1 for left, _, right in boxes)
    for place, (left, height, right) in enumerate(boxes):
        for other_left, other_height, other_right in boxes[:place]:
            beside = right <= other_left + 0.1 or other_right <= left + 0.1
            assert beside or abs(height - other_height) >= FONT
