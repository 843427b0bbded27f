"""Encoding beside a process that keeps one core busy, as in a shared container.

Threads that wait for each other at every operation lose more than the core that is gone. Both
libraries encode in turns with the machine to themselves and beside the neighbour, with the threads
that they choose by themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.pairs import Round, Timed, alternate, spread
from e2rank_rag.bench.sides import Answer, Side, Sides
from e2rank_rag.bench.tables import Table
from e2rank_rag.threads import usable_threads

SIDES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "e2rank_rag auto": ("e2rank_rag.bench.encode:ours", {"dtype": "auto"}),
    "e2rank_rag float32": ("e2rank_rag.bench.encode:ours", {"dtype": "float32"}),
    "sentence-transformers float32": ("e2rank_rag.bench.encode:theirs", {"kind": "float32"}),
}
QUIET, BESIDE = "quiet", "beside a neighbour"


def measure(context: Context) -> dict[str, Any]:
    """Documents a second of each side alone and beside the neighbour, and the share that is left.

    The share is of the quiet documents a second for each core that the neighbour leaves.
    """
    context.say("neighbour")
    options = {**context.model_options, "documents": context.settings.sizes.documents}
    cores = usable_threads()
    with Sides(context.start) as sides:
        neighbour = sides.add("neighbour", f"{__name__}:busy", {})
        assert neighbour is not None
        calls: dict[str, Callable[[], Timed]] = {}
        for name, (build, own) in SIDES.items():
            side = sides.add(name, build, {**options, **own})
            if side is None:
                continue
            side()  # chooses kernels
            calls[f"{name}, {QUIET}"] = side
            calls[f"{name}, {BESIDE}"] = partial(_beside, neighbour, side)
        rounds = alternate(calls, context.settings.sizes.rounds)
        about = {name: each for name, each in sides.about().items() if name in SIDES}
    return {
        "cores": cores,
        "cores_left": cores_left(cores),
        "sides": {
            name: {**each, **_row(rounds, name, each, cores)} for name, each in about.items()
        },
        "missing": sides.missing,
    }


def cores_left(cores: float) -> float:
    """What a neighbour of one thread leaves: all but one core, and half of a single one."""
    return max(cores - 1.0, cores / 2.0)


def _beside(neighbour: Side, side: Side) -> Timed:
    neighbour(working=True)
    try:
        return side()
    finally:
        neighbour(working=False)


def _row(
    rounds: Sequence[Round], name: str, about: Mapping[str, Any], cores: float
) -> dict[str, Any]:
    rates = {
        kind: [about["documents"] / each[f"{name}, {kind}"].wall for each in rounds]
        for kind in (QUIET, BESIDE)
    }
    # Fewer threads than cores use no more of either.
    left = min(about["threads"], cores_left(cores)) / min(about["threads"], cores)
    shares = [
        beside / (quiet * left) for quiet, beside in zip(rates[QUIET], rates[BESIDE], strict=True)
    ]
    return {
        "documents_per_second": {kind: spread(values) for kind, values in rates.items()},
        "share_of_what_is_left": spread(shares),
    }


def busy() -> tuple[dict[str, Any], Answer]:
    """A side that keeps one core busy from `working=True` to `working=False`."""
    running: list[threading.Event] = []

    def turn(until: threading.Event) -> None:
        while not until.is_set():
            pass

    def answer(working: bool) -> None:
        if working:
            running.append(threading.Event())
            threading.Thread(target=turn, args=running[-1:], daemon=True).start()
            return
        while running:
            running.pop().set()

    return {}, answer


def tables(result: Mapping[str, Any]) -> list[Table]:
    """One line per side."""
    rows = [
        [
            name,
            row["dtype"],
            str(row["threads"]),
            *(f"{row['documents_per_second'][kind]['median']:.1f}" for kind in (QUIET, BESIDE)),
            *(f"{row['share_of_what_is_left'][each]:.2f}" for each in ("min", "median", "max")),
        ]
        for name, row in result["sides"].items()
    ]
    title = (
        f"Documents a second beside a busy process; cores: {result['cores']:g}, left: "
        f"{result['cores_left']:g}"
    )
    head = "side|dtype|threads|quiet|beside|share of what is left: least|median|most"
    return [Table(title, head.split("|"), rows, result["missing"])]
