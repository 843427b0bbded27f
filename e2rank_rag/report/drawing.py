"""What a plot consists of, in the coordinates of an SVG of `WIDTH` units, which fits a phone.

The template draws these records, so that every text in them is escaped and every colour follows
the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDTH = 360.0
FONT = 11.0
_CHARACTER = 0.56 * FONT
_LINE = 1.2 * FONT


@dataclass(frozen=True, slots=True)
class Dot:
    """look: the name of a style. title: shown when a pointer rests on it."""

    x: float
    y: float
    look: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """points: as SVG writes them. A closed line is a filled area."""

    points: str
    look: str
    closed: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """anchor: start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    look: str = ""


@dataclass(frozen=True)
class Plot:
    """title: what the plot shows, in words, for readers that cannot see it."""

    title: str
    height: float
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    width: float = WIDTH


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` on the units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value is."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)


def steps(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round values between two bounds, at most `most`, with equal distances."""
    distance = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(distance))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= distance * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_steps(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... between two bounds above 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [each * 10.0**power for power in powers for each in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def points(pairs: Iterable[tuple[float, float]]) -> str:
    """Coordinates as SVG writes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def frame(plot: Plot, x: Axis, *, x_title: str, y_title: str) -> None:
    """Titles of both axes: that of the y axis stands above it."""
    plot.labels.append(Label(4, 12, y_title, look="axis"))
    plot.labels.append(Label((x.start + x.end) / 2, plot.height - 4, x_title, "middle", "axis"))


def rows(plot: Plot, x: Axis, y: Axis, values: Sequence[float], *, signed: bool = False) -> None:
    """Horizontal grid lines with their values at the left; that of 0 is stronger."""
    for value in values:
        look = "zero" if value == 0 and signed else "grid"
        plot.lines.append(Line(points([(x.start, y.at(value)), (x.end, y.at(value))]), look))
        plot.labels.append(Label(x.start - 5, y.at(value) + 4, number(value, signed), "end"))


def short(name: str, characters: int) -> str:
    """A name that is cut where a plot has no room for more."""
    return name if len(name) <= characters else name[: characters - 1] + "\u2026"


def number(value: float, signed: bool = False) -> str:
    """A number as axes write it."""
    text = f"{value:+g}" if signed and value else f"{value:g}"
    return text.replace("-", "\u2212")


def place_labels(plot: Plot, named: Sequence[tuple[Dot, str]]) -> None:
    """Add the dots with their names beside them, so that no name covers another or a dot."""
    taken = [(dot.x - 5, dot.y - 5, dot.x + 5, dot.y + 5) for dot, _ in named]
    for dot, text in named:
        label, box = _free_place(plot, dot, text, taken)
        taken.append(box)
        plot.dots.append(dot)
        plot.labels.append(label)
        near = min(max(dot.x, box[0]), box[2]), min(max(dot.y, box[1]), box[3])
        if math.dist(near, (dot.x, dot.y)) > 12:
            plot.lines.append(Line(points([(dot.x, dot.y), near]), "leader"))


Box = tuple[float, float, float, float]


def _free_place(plot: Plot, dot: Dot, text: str, taken: Sequence[Box]) -> tuple[Label, Box]:
    """A label near the dot: the nearest place that is free, else beside the dot."""
    width = len(text) * _CHARACTER
    tried = []
    for away in range(0, 90, 6):
        for down in sorted({away, -away}):
            for left in (dot.x + 8, dot.x - 8 - width, dot.x - width / 2):
                if left == dot.x - width / 2 and abs(down) < 12:
                    continue
                top = dot.y + down - _LINE / 2
                box = (left, top, left + width, top + _LINE)
                tried.append(box)
                inside = left >= 0 and box[2] <= plot.width and 16 <= top <= plot.height - 50
                if inside and not any(_overlap(box, other) for other in taken):
                    return Label(round(left, 1), round(top + FONT, 1), text), box
    return Label(tried[0][0], tried[0][1] + FONT, text), tried[0]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
