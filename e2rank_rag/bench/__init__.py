"""`e2rank bench`: speed on this machine, against others and against the processor's matrix peak.

Sides of a comparison take turns, each in a process of its own, with the same threads, dtype and
length, and a ratio is taken pair by pair. The result is JSON, which `tables` turns into tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.machine import PACKAGES, this_machine
from e2rank_rag.bench.settings import Settings
from e2rank_rag.bench.sides import ProcessSide, Start
from e2rank_rag.bench.tables import Table

PARTS = ("encode", "query", "candidates", "depth", "engines", "pools", "neighbour")
"""Each is a module here with `measure(context)` and `tables(result)`."""

FORMAT = 1


def run_bench(
    settings: Settings,
    parts: Sequence[str] = PARTS,
    *,
    start: Start | None = None,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The figures of these parts of `PARTS`, in their order.

    start: starts the sides; None: each in a process of its own.
    say: told what is being measured.
    keep: given the result so far after each part.
    """
    from e2rank_rag.bench import peak

    start = start or ProcessSide
    began = time.perf_counter()
    result: dict[str, Any] = {
        "format": FORMAT,
        "machine": this_machine(),
        "model": settings.model,
        "data": "scifact" if settings.data is None else settings.data.name,
        "threads": settings.threads,
        "parts": {},
    }
    say("the matrix peak")
    result["peak_gflops"] = peak.measure(settings, start)
    with Context(settings, start, result["peak_gflops"], say) as context:
        for name in parts:
            result["parts"][name] = _module(name).measure(context)
            result["seconds"] = time.perf_counter() - began
            keep(result)
    return result


def tables(result: Mapping[str, Any]) -> list[Table]:
    """The tables of a whole result: the machine, the peak and every part."""
    return [
        _machine_table(result),
        *(table for name, part in result["parts"].items() for table in _module(name).tables(part)),
    ]


def _machine_table(result: Mapping[str, Any]) -> Table:
    about, peaks = result["machine"], result["peak_gflops"]
    rows = [
        ["processor", f"{about['processor']}, {' '.join(about['flags'])}"],
        ["cores", f"{about['cores']}, usable {about['usable_threads']}"],
        ["threads", str(result["threads"])],
        ["python", about["python"]],
    ]
    rows += [[name, about[name]] for name in PACKAGES if name in about]
    for dtype, by_threads in peaks.items():
        values = [f"{count}: {value:,.0f}" for count, value in by_threads.items()]
        rows.append([f"peak in {dtype} by threads", f"{', '.join(values)} GFLOP/s"])
    rows += [["date", about["date"]], ["command", about["command"]]]
    return Table("Machine", ["", ""], rows)


def _module(part: str) -> Any:
    return import_module(f"{__name__}.{part}")
