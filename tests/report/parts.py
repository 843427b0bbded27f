"""A report of invented figures, whose parts a test may replace."""

from __future__ import annotations

from e2rank_rag.evaluation.differences import differences
from e2rank_rag.report.records import (
    Case,
    DatasetFigures,
    Deep,
    Depth,
    Held,
    Lengths,
    Machine,
    MethodFigures,
    Order,
    Prompts,
    Report,
    Row,
    Side,
)

MACHINE = Machine("Some CPU", 2, 1, "cpu", "float32", "Linux 6, Python 3.11", 0.5, {"torch": "2.6"})

HELD = Held(("d1", "d3"), 1, 90)


def methods(values, against="hybrid", times=None):
    """method -> figures; values: method -> one value per query."""
    by_query = {
        name: {f"q{n}": value for n, value in enumerate(each)} for name, each in values.items()
    }
    pairs = {name: (each, by_query[against]) for name, each in by_query.items() if name != against}
    found = differences(pairs)
    return {
        name: MethodFigures(
            mean=sum(each.values()) / len(each),
            by_query=each,
            median_ms=(times or {}).get(name, 10.0),
            slow_ms=20.0,
            difference=found.get(name),
        )
        for name, each in by_query.items()
    }


def row(rank, id, *, grade=None, other=1, shown=False, text="A text."):
    return Row(rank, id, grade, other, shown, text)


def case(**changes):
    fields = {
        "dataset": "one",
        "query_id": "q0",
        "query": "who purrs?",
        "before": 0.5,
        "after": 1.0,
        "rows_before": (row(1, "d1", other=2, shown=True), row(2, "d2", grade=1, other=1)),
        "rows_after": (row(1, "d2", grade=1, other=2), row(2, "d1", other=1, shown=True)),
        "rows_held": (row(1, "d1", other=2, shown=True), row(30, "d3", other=None, shown=True)),
        "deep": (Deep("d9", 2, 50, 20, False), Deep("d8", 1, None, None, False)),
        "held": HELD,
    }
    return Case(**(fields | changes))


def prompts(**changes):
    fields = {
        "depth": (
            Depth(0, 0.5, {"q": 0.5}, 0.0, 40.0, 0.0, False),
            Depth(5, 0.6, {"q": 0.6}, 4.9, 400.0, 0.5, True),
            Depth(20, 0.55, {"q": 0.55}, 20.0, 512.0, 1.0, False),
        ),
        "inside": Side(4, 0.5, 0.6, 6, 4.0, 3.0, differences({"p": ({"q": 1.0}, {"q": 0.5})})["p"]),
        "outside": Side(0, 0.0, 0.0, 0, None, None, None),
        "order": Order(0.6, (0.59, 0.61, 0.6, 0.6, 0.6), 0.58),
        "held": {"q0": HELD},
    }
    return Prompts(**(fields | changes))


def dataset(name="one", **changes):
    values = {
        "retrieve": [0.2, 0.4, 0.4, 0.6],
        "bm25": [0.1, 0.4, 0.5, 0.4],
        "hybrid": [0.3, 0.4, 0.5, 0.6],
        "evidence": [0.4, 0.5, 0.5, 0.6],
        "listwise": [0.7, 0.6, 0.5, 0.4],
    }
    fields = {
        "name": name,
        "split": "test",
        "documents": 100,
        "queries": 4,
        "judged": 8,
        "left_out": 0,
        "methods": methods(values),
        "lengths": Lengths(120.0, 100.0),
        "order": Order(0.5, (0.5,) * 5, 0.5),
        "prompts": prompts(),
        "won": (case(dataset=name),),
        "lost": (),
    }
    return DatasetFigures(**(fields | changes))


def report(*datasets, **changes):
    fields = {
        "created": "2026-01-01 00:00 UTC",
        "model": "some-model",
        "reranker": None,
        "subject": "listwise",
        "against": "hybrid",
        "candidates": 100,
        "machine": MACHINE,
        "datasets": datasets or (dataset(),),
        "not_measured": {"prompt": "the model has no listwise adapter"},
        "word_datasets": (),
        "without": (),
    }
    return Report(**(fields | changes))
