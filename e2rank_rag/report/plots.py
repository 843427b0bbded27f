"""The plots of a report. Values are in points: nDCG@10 times 100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from e2rank_rag.report.drawing import (
    FONT,
    WIDTH,
    Axis,
    Dot,
    Label,
    Line,
    Plot,
    frame,
    log_steps,
    number,
    place_labels,
    points,
    rows,
    short,
    steps,
)
from e2rank_rag.report.records import DatasetFigures, Order, Report
from e2rank_rag.report.summary import LABELS

_LEFT, _RIGHT, _TOP = 38.0, WIDTH - 10.0, 24.0
_NAMED = _RIGHT - 96.0  # leaves room for names beside the last dots


def quality_and_latency(report: Report) -> Plot:
    """Each method by its milliseconds per query and its mean over the datasets."""
    plot = Plot("Mean nDCG@10 of each method against milliseconds per query", 250)
    times = {m: fmean(d.methods[m].median_ms for d in report.datasets) for m in report.methods}
    values = {m: 100 * (report.mean(m) or 0.0) for m in report.methods}
    low, high = min(values.values()), max(values.values())
    margin = max(1.0, 0.12 * (high - low))
    bottom = plot.height - 36
    x = Axis(0.7 * min(times.values()), 1.1 * max(times.values()), _LEFT, _NAMED, logarithmic=True)
    y = Axis(low - margin, high + margin, bottom, _TOP)
    rows(plot, replace(x, end=_RIGHT), y, steps(y.low, y.high))
    for value in log_steps(x.low, x.high):
        plot.labels.append(Label(x.at(value), bottom + 15, number(value), "middle"))
    named = [
        (
            Dot(
                x.at(times[m]),
                y.at(values[m]),
                _look(report, m),
                f"{LABELS[m]}: {values[m]:.1f} in {times[m]:.1f} ms",
            ),
            LABELS[m],
        )
        for m in report.methods
    ]
    place_labels(plot, named)
    frame(plot, x, x_title="milliseconds per query (logarithmic)", y_title="mean nDCG@10 x 100")
    return plot


def gains(report: Report, dataset: DatasetFigures, widest: float) -> Plot:
    """The gain of every query, largest first. widest: the largest gain or loss of all datasets."""
    after = dataset.methods[report.subject].by_query
    before = dataset.methods[report.against].by_query
    values = sorted((100 * (after[id] - before[id]) for id in before), reverse=True)
    plot = Plot(f"Gain of each query on {dataset.name}, largest first", 170)
    bottom = plot.height - 22
    x = Axis(0, len(values), _LEFT, _RIGHT)
    y = Axis(-widest, widest, bottom, _TOP)
    rows(plot, x, y, steps(-widest, widest, most=5), signed=True)
    for look, side in (("gain", [v for v in values if v > 0]), ("loss", _losses(values))):
        start = 0 if look == "gain" else len(values) - len(side)
        if side:
            plot.lines.append(Line(_stairs(x, y, side, start), look, closed=True))
    won, lost = sum(v > 0 for v in values), sum(v < 0 for v in values)
    text = f"{won} better, {len(values) - won - lost} equal, {lost} worse"
    frame(plot, x, x_title=f"{len(values)} queries: {text}", y_title="gain in points")
    return plot


def widest_gain(report: Report) -> float:
    """The largest gain or loss of a query in points, rounded up to tens; at least 10."""
    largest = max(
        abs(after - d.methods[report.against].by_query[id])
        for d in report.datasets
        for id, after in d.methods[report.subject].by_query.items()
    )
    return max(10.0, 10.0 * -(-100 * largest // 10))


def depth_sweep(report: Report) -> Plot | None:
    """nDCG@10 by the number of documents in the prompt, against none; None without prompts."""
    curves = {
        d.name: [100 * (each.mean - d.prompts.depth[0].mean) for each in d.prompts.depth]
        for d in report.datasets
        if d.prompts is not None
    }
    if not curves:
        return None
    first = next(d.prompts for d in report.datasets if d.prompts is not None)
    if len(curves) > 1:
        curves["mean"] = [fmean(each) for each in zip(*curves.values(), strict=True)]
    plot = Plot("Change of nDCG@10 by the number of documents in the prompt", 220)
    every = [value for curve in curves.values() for value in curve]
    y = _around(every, plot.height - 38, _TOP)
    x = Axis(0, len(first.depth) - 1, _LEFT + 8, _NAMED)
    rows(plot, x, y, steps(y.low, y.high, most=5), signed=True)
    for place, each in enumerate(first.depth):
        look = "strong" if each.own else ""
        plot.labels.append(Label(x.at(place), plot.height - 22, str(each.depth), "middle", look))
    ends = []
    for name, curve in curves.items():
        look = "subject" if name == "mean" or len(curves) == 1 else "other"
        places = [(x.at(place), y.at(value)) for place, value in enumerate(curve)]
        plot.lines.append(Line(points(places), f"curve {look}", title=name))
        plot.dots.extend(
            Dot(*place, look, f"{name}: {number(round(value, 2), True)}")
            for place, value in zip(places, curve, strict=True)
        )
        if look == "subject" or len(curves) <= 5:
            ends.append((places[-1][1], name))
    plot.labels.extend(_spread(ends, x.end + 8))
    frame(plot, x, x_title="documents in the prompt", y_title="points above a prompt without any")
    return plot


def order_strip(report: Report) -> Plot | None:
    """nDCG@10 in other orders, against the given one; None where no order changes anything."""
    strips = [
        (f"{short(d.name, 28)}: {what}", order)
        for d in report.datasets
        for what, order in orders(d)
        if order.spread > 0
    ]
    if not strips:
        return None
    plot = Plot("Change of nDCG@10 when documents come in another order", 56 + 38 * len(strips))
    changes = [
        100 * (value - order.given)
        for _, order in strips
        for value in (*order.shuffled, order.reversed)
    ]
    far = max(0.5, 1.1 * max(map(abs, changes)))
    x = Axis(-far, far, 12, WIDTH - 12)
    bottom = plot.height - 36
    for value in steps(-far, far, most=7):
        look = "zero" if value == 0 else "grid"
        plot.lines.append(Line(points([(x.at(value), 4), (x.at(value), bottom)]), look))
        plot.labels.append(Label(x.at(value), bottom + 14, number(value, True), "middle"))
    for place, (name, order) in enumerate(strips):
        height = 26 + 38 * place
        plot.labels.append(Label(12, height - 9, name))
        moved = [("other", value, "shuffled") for value in order.shuffled]
        for look, value, what in [*moved, ("reversed", order.reversed, "reversed")]:
            change = 100 * (value - order.given)
            title = f"{what}: {number(round(change, 2), True)}"
            plot.dots.append(Dot(x.at(change), height + 6, look, title))
    plot.labels.append(
        Label(WIDTH / 2, plot.height - 4, "points against the given order", "middle")
    )
    return plot


def orders(dataset: DatasetFigures) -> list[tuple[str, Order]]:
    """What came in other orders, by name."""
    found = []
    if dataset.order is not None:
        found.append(("candidates", dataset.order))
    if dataset.prompts is not None:
        found.append(("documents in the prompt", dataset.prompts.order))
    return found


def _look(report: Report, method: str) -> str:
    return {report.subject: "subject", report.against: "against"}.get(method, "other")


def _losses(values: Sequence[float]) -> list[float]:
    return [value for value in values if value < 0]


def _stairs(x: Axis, y: Axis, values: Sequence[float], start: int) -> str:
    """The outline of bars side by side."""
    outline = [(x.at(start), y.at(0))]
    for place, value in enumerate(values, start=start):
        outline += [(x.at(place), y.at(value)), (x.at(place + 1), y.at(value))]
    return points([*outline, (x.at(start + len(values)), y.at(0))])


def _around(values: Sequence[float], bottom: float, top: float) -> Axis:
    """An axis that holds the values and 0, at least one point high."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    margin = max(0.5, 0.15 * (high - low))
    return Axis(low - margin, high + margin, bottom, top)


def _spread(ends: Sequence[tuple[float, str]], left: float) -> list[Label]:
    """Names at the ends of curves, one below the other."""
    labels: list[Label] = []
    lowest = float("-inf")
    for height, name in sorted(ends):
        lowest = max(height + 4, lowest + FONT + 2)
        labels.append(Label(left, round(lowest, 1), short(name, 13)))
    return labels
