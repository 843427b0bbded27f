"""Measures one dataset for a report: every method, one query at a time, then the variants."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import Any, cast

import numpy as np

from e2rank_rag.evaluation.differences import Differences
from e2rank_rag.evaluation.report import Experiment, run_experiment
from e2rank_rag.evaluation.systems import METHODS, RERANK, Comparison, SystemResult
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.report.cases import pick_cases
from e2rank_rag.report.records import (
    MEASURE,
    DatasetFigures,
    Lengths,
    Machine,
    MethodFigures,
    Report,
)
from e2rank_rag.report.summary import WORDS_POINTS
from e2rank_rag.report.variants import Task, Variants, measure_variants
from e2rank_rag.rerankers import BaseReranker
from e2rank_rag.types import Store

CANDIDATES = 100

ORDER = ("retrieve", "bm25", "hybrid", "feedback", "evidence", "prompt", "listwise", RERANK)
"""Methods in the order of the tables."""

_WARM_UP = 2


@dataclass(frozen=True)
class Plan:
    """What is measured on every dataset.

    methods: in the order of the tables. subject: the method that the report is about.
    against: the method that others are compared with, whose documents are the candidates.
    not_measured: method -> why.
    """

    methods: tuple[str, ...]
    subject: str
    against: str
    not_measured: Mapping[str, str]

    @classmethod
    def of(cls, encoder: Encoder, reranker: BaseReranker | None, *, words: bool) -> Plan:
        """The methods that the models can run.

        reranker: what the report is about; None: the listwise prompt of the encoder.
        words: whether words are indexed.
        """
        left_out: dict[str, str] = {}
        if not words:
            left_out |= dict.fromkeys(("bm25", "hybrid"), "no words are indexed")
        if encoder.feedback is None:
            left_out["feedback"] = "the model's recipe has no feedback"
        if encoder.recipe.adapter is None:
            left_out["prompt"] = (
                "the model has no listwise adapter to leave out; unless its weights were trained "
                "for the prompt, listwise is the untrained prompt"
            )
        if encoder.recipe.prompts.listwise is None:
            left_out["listwise"] = "the model's recipe has no listwise prompt"
        if reranker is None:
            left_out[RERANK] = "no other reranker was named"
        methods = tuple(name for name in ORDER if name not in left_out)
        subject = next(name for name in (RERANK, "listwise", "evidence") if name in methods)
        return cls(methods, subject, "hybrid" if words else "retrieve", left_out)


def some_queries(experiment: Experiment, count: int | None) -> Experiment:
    """The experiment with `count` of its queries, spread evenly over them; None: with all."""
    ids = list(experiment.qrels)
    if count is None or count >= len(ids):
        return experiment
    chosen = [ids[place * len(ids) // count] for place in range(count)]
    return replace(
        experiment,
        queries={id: experiment.queries[id] for id in chosen},
        qrels={id: experiment.qrels[id] for id in chosen},
    )


def measure_dataset(
    experiment: Experiment,
    plan: Plan,
    encoder: Encoder,
    store: Store,
    *,
    reranker: BaseReranker | None = None,
    queries: int | None = None,
    progress: bool = False,
) -> DatasetFigures:
    """Index what the store lacks, run the plan's methods, and measure variants of its subject.

    queries: how many to measure, see `some_queries`.

    Raises the ValueErrors of `Comparison.run`.
    """
    chosen = some_queries(experiment, queries)
    options: dict[str, Any] = {
        "reranker": reranker,
        "measures": [MEASURE],
        "retrieve_k": CANDIDATES,
        "progress": progress,
    }
    # Indexes, and wakes every method once before its time counts.
    run_experiment(some_queries(chosen, _WARM_UP), encoder, store, plan.methods, **options)
    comparison = Comparison(
        encoder, store, chosen.queries, chosen.qrels, batch_queries=1, **options
    )
    results = {name: comparison.run(name) for name in plan.methods}
    before, after = results[plan.against].rankings, results[plan.subject].rankings
    task = Task(store, chosen.queries, chosen.qrels, before, after)
    variants = _variants(comparison, plan.subject, task)
    methods = _methods(results, plan.against)
    values = methods[plan.against].by_query, methods[plan.subject].by_query
    held = {} if variants.prompts is None else variants.prompts.held
    won, lost = pick_cases(chosen.name, task, *values, held)
    return DatasetFigures(
        name=chosen.name,
        split=chosen.split,
        documents=store.count(),
        queries=len(chosen.qrels),
        judged=len(experiment.qrels),
        left_out=max(result.left_out for result in results.values()),
        methods=methods,
        lengths=_lengths(task, results["retrieve"]),
        order=variants.order,
        prompts=variants.prompts,
        won=won,
        lost=lost,
    )


def finished(
    datasets: list[DatasetFigures],
    plan: Plan,
    encoder: Encoder,
    machine: Machine,
    *,
    reranker: str | None = None,
    without: tuple[str, ...] = (),
) -> Report:
    """The report of measured datasets, at least one.

    reranker: the name of the reranker beside the encoder. without: names of datasets to leave out
    of the second mean, besides those on which BM25 is far above plain cosine.
    """
    words = tuple(dataset.name for dataset in datasets if is_word_dataset(dataset))
    return Report(
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        model=encoder.name,
        reranker=reranker,
        subject=plan.subject,
        against=plan.against,
        candidates=CANDIDATES,
        machine=machine,
        datasets=tuple(datasets),
        not_measured=plan.not_measured,
        word_datasets=words,
        without=tuple(dict.fromkeys((*words, *without))),
    )


def is_word_dataset(dataset: DatasetFigures) -> bool:
    """Whether BM25 is `WORDS_POINTS` or more above plain cosine."""
    if "bm25" not in dataset.methods:
        return False
    above = dataset.methods["bm25"].mean - dataset.methods["retrieve"].mean
    return 100 * above >= WORDS_POINTS


def _variants(comparison: Comparison, subject: str, task: Task) -> Variants:
    made = METHODS[subject].reranker
    assert made is not None
    with ExitStack() as opened:
        reranker = cast(BaseReranker, made(comparison, opened))
        return measure_variants(task, reranker, progress=comparison.progress)


def _methods(results: Mapping[str, SystemResult], against: str) -> dict[str, MethodFigures]:
    compared = Differences.of({name: of.by_query for name, of in results.items()}, against)
    figures = {}
    for name, result in results.items():
        times = 1000 * np.array(result.batch_seconds)
        differs = None if name == against else compared.by_method[name][MEASURE]
        figures[name] = MethodFigures(
            mean=result.measures[MEASURE],
            by_query={query: values[MEASURE] for query, values in result.by_query.items()},
            median_ms=float(np.percentile(times, 50)),
            slow_ms=float(np.percentile(times, 95)),
            difference=differs,
        )
    return figures


def _lengths(task: Task, retrieved: SystemResult) -> Lengths:
    relevant = {id for grades in task.qrels.values() for id, grade in grades.items() if grade > 0}
    stored = task.store.get(sorted(relevant))
    return Lengths(
        relevant=_median_words([item.document.text for item in stored.values()]),
        retrieved=_median_words(
            [hit.document.text for hits in retrieved.rankings.values() for hit in hits[:10]]
        ),
    )


def _median_words(texts: list[str]) -> float | None:
    return median(len(text.split()) for text in texts) if texts else None
