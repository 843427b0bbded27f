"""One query: encoding, search and reranking of 100, and where each millisecond goes.

As it comes, against settings of OMP_* and OPENBLAS_* by hand, each in a process of its own: the
library should need none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.pairs import Timed, alternate, percentiles, ratio, timed
from e2rank_rag.bench.phases import Stopwatch
from e2rank_rag.bench.searching import about_encoder, open_encoder, open_index, queries_of, stored
from e2rank_rag.bench.sides import Answer, Side, Sides
from e2rank_rag.bench.tables import Table, cells, span

AS_IT_COMES = "as it comes"
BY_HAND: Mapping[str, Mapping[str, str]] = {
    AS_IT_COMES: {},
    "OPENBLAS_NUM_THREADS=1": {"OPENBLAS_NUM_THREADS": "1"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    "both": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""Variables beside those of the calling process."""

DTYPES = ("float32", "auto")
CALLS = ("encode", "search", "rerank", "whole", "whole hybrid")
"""encode: the query's vector. search: query text to 100 hits, by vector. rerank: of these 100.
whole: query text to 100 reranked hits. whole hybrid: the same with a hybrid search."""

CANDIDATES = 100
WHOLE = {"top_k": CANDIDATES, "retrieve_k": CANDIDATES}


def measure(context: Context) -> dict[str, Any]:
    """Milliseconds by dtype and setting."""
    return {"by_dtype": [_with(context, dtype) for dtype in DTYPES]}


def _with(context: Context, dtype: str) -> dict[str, Any]:
    options = {**context.prepared, "dtype": dtype}
    sizes = context.settings.sizes
    context.say(f"query: {dtype}")
    with Sides(context.start) as sides:
        for name, environment in BY_HAND.items():
            sides.add(name, f"{__name__}:searching_side", options, environment)
        calls = {
            name: _asking(side, sizes.queries, sizes.rounds) for name, side in sides.started.items()
        }
        rounds = alternate(calls, sizes.rounds)
        first = sides.started[AS_IT_COMES]
        phases = {
            kind: first(count=sizes.queries, phases=kind).result for kind in ("vector", "hybrid")
        }
        about = sides.about()
    rows = {name: {**about[name], "ms": _milliseconds(rounds, name)} for name in calls}
    best = min(
        (name for name in rows if name != AS_IT_COMES),
        key=lambda name: rows[name]["ms"]["whole"]["p50"],
    )
    return {
        "dtype": dtype,
        "settings": rows,
        "best_by_hand": best,
        "as_it_comes_over_best": _ratios(rounds, best),
        "phases_ms": phases,
    }


def _asking(side: Side, queries: int, rounds: int) -> Any:
    """A call that asks the next queries of the side: its processes are all asked the same ones."""
    side(count=2)
    return lambda: side(count=queries)


def _milliseconds(rounds: Sequence[Mapping[str, Timed]], name: str) -> dict[str, Any]:
    return {
        call: percentiles([each for part in rounds for each in part[name].result[call]])
        for call in CALLS
    }


def _ratios(rounds: Sequence[Mapping[str, Timed]], best: str) -> dict[str, Any]:
    """Of the medians of whole queries, round by round: above 1, as it comes is the faster one."""
    medians = [
        {name: Timed(median(part[name].result["whole"]), 0.0) for name in (AS_IT_COMES, best)}
        for part in rounds
    ]
    return ratio(medians, AS_IT_COMES, best)


def searching_side(
    model: str,
    data: str | None,
    documents: int,
    folder: str,
    dtype: str,
    caller_computes: bool = False,
) -> tuple[dict[str, Any], Answer]:
    """A side that searches the prepared index in memory, and reranks.

    caller_computes: whether the calling thread multiplies matrices with torch first, as a program
        that uses torch beside this library does.
    """
    from e2rank_rag.pipeline import SearchPipeline
    from e2rank_rag.rerankers import ListwiseReranker

    if caller_computes:
        import torch

        matrix = torch.ones(500, 500)
        matrix @ matrix
    encoder = open_encoder(model, dtype)
    store = open_index(encoder, *stored(folder, data, documents), words=True)
    retrieval = SearchPipeline(encoder, store)
    reranker = ListwiseReranker(encoder)
    pipeline = SearchPipeline(encoder, store, reranker)
    fresh = queries_of(data)

    def answer(count: int, phases: str | None = None) -> dict[str, Any]:
        if phases is not None:
            asked = list(islice(fresh, count))
            return _phases(pipeline, asked, Stopwatch(), hybrid=phases == "hybrid")
        times: dict[str, list[float]] = {call: [] for call in CALLS}

        def clock(name: str, call: Callable[..., Any], *arguments: Any, **numbers: int) -> Any:
            found = timed(partial(call, *arguments, **numbers))
            times[name].append(1000 * found.wall)
            return found.result

        for _ in range(count):
            clock("encode", encoder.encode_queries, [next(fresh)])
            query = next(fresh)
            hits = clock("search", retrieval.search, query, top_k=CANDIDATES, hybrid=False)
            clock("rerank", reranker.rerank, query, hits)
            for name, hybrid in (("whole", False), ("whole hybrid", True)):
                clock(name, pipeline.search, next(fresh), **WHOLE, hybrid=hybrid)
        return times

    return {**about_encoder(encoder), "documents": documents, "candidates": CANDIDATES}, answer


def _phases(pipeline: Any, queries: Sequence[str], watch: Any, *, hybrid: bool) -> dict[str, float]:
    """The median milliseconds of each phase of whole queries, and of their sum."""
    found: list[dict[str, float]] = []
    for query in queries:
        with watch.measured():
            pipeline.search(query, **WHOLE, hybrid=hybrid)
        phases = watch.seconds
        found.append({**phases, "sum": sum(phases.values())})
    return {name: 1000 * median(each[name] for each in found) for name in found[0]}


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Milliseconds by setting, and by phase."""
    found = []
    for part in result["by_dtype"]:
        rows = [
            [name, str(row["threads"]), row["dtype"], *_cells(row["ms"])]
            for name, row in part["settings"].items()
        ]
        first = part["settings"][AS_IT_COMES]
        title = (
            f"One query, dtype={part['dtype']}: ms at p50 / p99; {first['documents']} documents "
            f"in memory, {first['candidates']} candidates"
        )
        found.append(Table(title, ["setting", "threads", "computed in", *CALLS], rows))
        faster = span(part["as_it_comes_over_best"])
        found.append(
            Table(
                f"{part['best_by_hand']} / as it comes, whole query",
                ["", "worst", "median", "best"],
                [["times as fast", *faster]],
            )
        )
    phases = {
        f"{part['dtype']}, {kind}": ms
        for part in result["by_dtype"]
        for kind, ms in part["phases_ms"].items()
    }
    names = list(next(iter(phases.values())))
    rows = [[name, *(cells(each[name], 1) for each in phases.values())] for name in names]
    found.append(Table("Where the milliseconds go (medians)", ["phase", *phases], rows))
    return found


def _cells(ms: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [f"{ms[call]['p50']:.1f} / {ms[call]['p99']:.1f}" for call in CALLS]
