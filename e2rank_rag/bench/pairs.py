"""Timing in alternation, and how far repetitions lie apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Clock = Literal["wall", "process"]


class Timed(NamedTuple):
    """One call. wall: seconds on the clock. process: seconds of processor time, of all threads."""

    wall: float
    process: float
    result: Any = None


Round = Mapping[str, Timed]
"""One call of every side, by its name."""


def timed(call: Callable[[], Any]) -> Timed:
    """Call it once, and say how long that took."""
    wall, process = time.perf_counter(), time.process_time()
    result = call()
    return Timed(time.perf_counter() - wall, time.process_time() - process, result)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes on the clock."""
    return timed(call).wall


def alternate(
    sides: Mapping[str, Callable[[], Timed]],
    count: int,
    *,
    after: Callable[[int], None] | None = None,
) -> list[dict[str, Timed]]:
    """`count` rounds: each calls every side once, every second round in the reverse order.

    So a machine that becomes slower or faster meanwhile does so for all sides alike.

    after: called with the number of each finished round, from 1 on.
    """
    rounds = []
    for number in range(count):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        found = {name: sides[name]() for name in names}
        rounds.append({name: found[name] for name in sides})
        if after is not None:
            after(number + 1)
    return rounds


def ratio(
    rounds: Sequence[Round], faster: str, slower: str, clock: Clock = "wall"
) -> dict[str, Any]:
    """How many times as fast one side is as the other, pair by pair: worst, median, best."""
    pairs = [getattr(each[slower], clock) / getattr(each[faster], clock) for each in rounds]
    return {
        "worst": min(pairs),
        "median": statistics.median(pairs),
        "best": max(pairs),
        "pairs": pairs,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and most."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p99 of the values, by the nearest rank: of fewer than 100 the p99 is the highest."""
    ordered = sorted(values)

    def at(share: int) -> float:
        return ordered[max(0, -(-share * len(ordered) // 100) - 1)]

    return {"p50": at(50), "p99": at(99), "calls": len(ordered)}
