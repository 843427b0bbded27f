"""The guard that one pool of threads is awake at a time.

numpy and scipy have a pool of their own beside torch's. Where both compute for one query, their
threads wait for each other. Here the same queries are answered by a process as it comes, and by one
whose second pools have one thread; more than `MOST` times the second one's time is an error. A
third process shows what a caller pays who computes with torch in a thread of his own; that is his.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.pairs import Timed, alternate, ratio
from e2rank_rag.bench.query import AS_IT_COMES
from e2rank_rag.bench.sides import Sides
from e2rank_rag.bench.tables import Table, span

MOST = 1.15
HELD = "second pools held at one thread"
CALLER = "the caller computes with torch too"
ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
    "1",
)


class SecondPool(Exception):
    """A second pool of threads costs more than it may."""


def measure(context: Context) -> dict[str, Any]:
    """Milliseconds of whole queries on all sides, and their ratios round by round."""
    sizes = context.settings.sizes
    options = {**context.prepared, "dtype": "auto"}
    context.say("pools")
    kinds: dict[str, tuple[dict[str, Any], Mapping[str, str]]] = {
        AS_IT_COMES: (options, {}),
        HELD: (options, ONE_THREAD),
        CALLER: ({**options, "caller_computes": True}, {}),
    }
    with Sides(context.start) as sides:
        calls = {}
        for name, (chosen, environment) in kinds.items():
            side = sides.add(name, "e2rank_rag.bench.query:searching_side", chosen, environment)
            assert side is not None
            side(count=2)
            calls[name] = partial(side, count=sizes.queries)
        rounds = alternate(calls, max(3, sizes.rounds))
        about = sides.about()
    medians = [
        {name: Timed(median(each[name].result["whole"]), 0.0) for name in calls} for each in rounds
    ]
    return {
        "sides": {
            name: {**about[name], "ms": median(each[name].wall for each in medians)}
            for name in calls
        },
        "as_it_comes_over_held": ratio(medians, HELD, AS_IT_COMES),
        "caller_computes_over_as_it_comes": ratio(medians, AS_IT_COMES, CALLER),
        "most": MOST,
    }


def check(result: Mapping[str, Any]) -> None:
    """Raises SecondPool if the median ratio is above the limit."""
    found = result["as_it_comes_over_held"]["median"]
    if found > result["most"]:
        raise SecondPool(
            f"a second pool of threads makes a query take {found:.2f} times as long (the limit is "
            f"{result['most']}): set OPENBLAS_NUM_THREADS=1, and find the call into numpy or scipy "
            "that wakes it"
        )


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Both sides, and the ratio."""
    rows = [[name, f"{side['ms']:.1f}"] for name, side in result["sides"].items()]
    found = [Table("A second pool of threads: ms of a whole query", ["", "median"], rows)]
    ratios = [
        [name, *span(result[key])]
        for name, key in (
            (f"as it comes / {HELD}", "as_it_comes_over_held"),
            (f"{CALLER} / as it comes", "caller_computes_over_as_it_comes"),
        )
    ]
    head = ["times as long", "least", "median", "most"]
    return [*found, Table(f"Ratios; the first may be {result['most']} at most", head, ratios)]
