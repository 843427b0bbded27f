"""Measures of a run, by ir-measures, with ties in the run's order.

ir-measures passes the scores to tools that break ties by document id, some ascending and some
descending; one of them keeps only 32 bits. So the tools get ranks instead of scores, and documents
with equal scores keep the run's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral

import ir_measures
from ir_measures import Measure

from e2rank_rag.evaluation.runs import Qrels, Run, ranked_ids

DEFAULT_MEASURES = ("nDCG@10", "R@100", "RR@10")

_FAMILIES = ("AP", "Bpref", "Judged", "nDCG", "P", "R", "RR", "Rprec", "Success")
_LARGEST = 1_000_000
_ACCEPTED = (
    f"accepted: {', '.join(_FAMILIES)} in ir-measures' spelling, such as nDCG@10, R@100, RR@10, "
    "AP, P(rel=2)@5, nDCG(gains={0:0,1:1,2:3})@10; cutoff and rel are whole numbers from 1 to "
    f"{_LARGEST}"
)

# Only providers that run in this process: the one for ERR starts Perl and writes its own files.
_PROVIDER = ir_measures.providers.FallbackProvider(
    [ir_measures.pytrec_eval, ir_measures.judged, ir_measures.msmarco]
)


def evaluate(
    run: Run, qrels: Qrels, measures: Sequence[str] = DEFAULT_MEASURES
) -> dict[str, float]:
    """The mean of each measure over all queries of the qrels, by the name given in `measures`.

    A query of the qrels that is missing in the run counts as 0; a query that is only in the run is
    ignored. nDCG gains are the grades themselves, not 2^grade - 1, and the discount is
    log2(rank + 1); a grade below 0 counts as 0. For the other measures a grade of 1 and above is
    relevant.

    Raises:
        ValueError: no qrels; an unknown measure; a NaN score; a grade that is not a whole number or
            is above a million.
    """
    return means(evaluate_by_query(run, qrels, measures))


def means(by_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over the queries; by_query: query id -> measure -> value."""
    names = next(iter(by_query.values()), {})
    return {
        name: math.fsum(values[name] for values in by_query.values()) / len(by_query)
        for name in names
    }


def evaluate_by_query(
    run: Run, qrels: Qrels, measures: Sequence[str] = DEFAULT_MEASURES
) -> dict[str, dict[str, float]]:
    """query id -> measure -> value, for every query of the qrels, in order; see `evaluate`."""
    parsed = parse_measures(measures)
    grades = _whole_grades(qrels)
    # Left out when empty, like a missing query: `Judged` would divide by the number of documents.
    places = {query: _places(query, run[query]) for query in grades if run.get(query)}
    values = {query: dict.fromkeys(parsed, 0.0) for query in grades}
    names: dict[Measure, list[str]] = {}
    for name, measure in parsed.items():
        names.setdefault(measure, []).append(name)
    for metric in _PROVIDER.iter_calc(list(names), grades, places):
        for name in names[metric.measure]:
            values[metric.query_id][name] = float(metric.value)
    return values


def _places(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    ids = ranked_ids(query, scores)
    return {doc_id: float(len(ids) - place) for place, doc_id in enumerate(ids)}


def _whole_grades(qrels: Qrels) -> dict[str, dict[str, int]]:
    if not qrels:
        raise ValueError("the qrels are empty: a mean over no query is not defined")
    for query, grades in qrels.items():
        for doc_id, grade in grades.items():
            # trec_eval's integers overflow without an error, and nDCG becomes some trillions.
            if not isinstance(grade, Integral) or grade > _LARGEST:
                raise ValueError(
                    f"the grade of document {doc_id!r} for query {query!r} must be a whole number "
                    f"up to {_LARGEST}, got {grade!r}"
                )
    # For trec_eval a grade below 0 means "not judged"; for other tools it does not.
    return {
        query: {doc_id: max(int(grade), 0) for doc_id, grade in grades.items()}
        for query, grades in qrels.items()
    }


def parse_measures(measures: Sequence[str]) -> dict[str, Measure]:
    """The measures by name; ValueError for an unknown name."""
    if isinstance(measures, str) or not measures:
        raise ValueError(f"measures must be a list of names, got {measures!r}; {_ACCEPTED}")
    return {name: _parse_measure(name) for name in measures}


def _parse_measure(name: str) -> Measure:
    try:
        measure = ir_measures.parse_measure(name)
        # supports() asserts that the parameters are ones the measure has.
        known = measure.NAME in _FAMILIES and _PROVIDER.supports(measure)
    except (ValueError, NameError, TypeError, AssertionError) as error:
        raise ValueError(f"unknown measure {name!r}; {_ACCEPTED}") from error
    if not known or not _has_sane_parameters(measure):
        raise ValueError(f"unknown measure {name!r}; {_ACCEPTED}")
    return measure


def _has_sane_parameters(measure: Measure) -> bool:
    """Whether cutoff and rel are valid: trec_eval's C code ends the process on a cutoff of 0."""
    limits = [measure.params[name] for name in ("cutoff", "rel") if name in measure.params]
    gains = measure.params.get("gains", {})
    return all(type(limit) is int and 1 <= limit <= _LARGEST for limit in limits) and all(
        type(number) is int and 0 <= number <= _LARGEST for pair in gains.items() for number in pair
    )
