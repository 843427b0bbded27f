"""What a report says in sentences, all of them computed."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from e2rank_rag.evaluation.differences import LEVEL, Difference, differences
from e2rank_rag.evaluation.significance import paired_randomization_test
from e2rank_rag.report.records import MEASURE, Report

EQUAL_POINTS = 0.5
"""Two methods are called equally good below this difference of their means, in points, if no
difference is significant: neither that of the means nor that of a dataset."""

FEW_QUERIES = 50
"""Below this number of queries the page warns that only large differences show."""

WORDS_POINTS = 5.0
"""BM25 is called far above plain cosine from this difference on, in points."""

LABELS = {
    "retrieve": "plain cosine",
    "bm25": "BM25",
    "hybrid": "hybrid search",
    "feedback": "feedback",
    "evidence": "evidence",
    "prompt": "untrained prompt",
    "listwise": "listwise",
    "rerank": "reranker",
}

MEANINGS = {
    "retrieve": "the documents nearest to the query's vector",
    "bm25": "words alone",
    "hybrid": "both rankings, fused by the store (RRF)",
    "feedback": "the query's vector plus the mean of the best candidates: no prompt",
    "evidence": "feedback, and the words of the candidates in the score: no prompt",
    "prompt": "the listwise prompt without the trained adapter",
    "listwise": "the listwise prompt of the model, as its folder says",
    "rerank": "the reranker that was named",
}


class Compared(NamedTuple):
    """Two methods over all datasets.

    points: the change of the mean over the datasets, 0 to 100. p: of this change.
    better, worse: names of the datasets with a significant difference of their own, with Holm's
        correction over the datasets.
    """

    points: float
    p: float
    better: list[str]
    worse: list[str]

    @property
    def equal(self) -> bool:
        """Whether one is as good as the other: a small difference that chance may explain."""
        significant = self.better or self.worse or self.p < LEVEL
        return not significant and abs(self.points) < EQUAL_POINTS


def compare(report: Report, method: str, other: str) -> Compared:
    """How a method differs from another one, dataset by dataset and on the mean."""
    pairs = {
        d.name: (d.methods[method].by_query, d.methods[other].by_query) for d in report.datasets
    }
    change = {d.name: d.methods[method].mean - d.methods[other].mean for d in report.datasets}
    significant = [name for name, found in differences(pairs).items() if found.significant]
    return Compared(
        points=100 * sum(change.values()) / len(change),
        p=paired_randomization_test(_shares(report, method), _shares(report, other)),
        better=[name for name in significant if change[name] > 0],
        worse=[name for name in significant if change[name] < 0],
    )


def mean_differences(report: Report) -> dict[str, Difference]:
    """How each method's mean over the datasets differs from that of the compared method.

    Holm's correction is over the methods, as within a dataset.
    """
    against = _shares(report, report.against)
    others = [name for name in report.methods if name != report.against]
    return differences({name: (_shares(report, name), against) for name in others})


def _shares(report: Report, method: str) -> dict[str, float]:
    """What each query adds to the mean over the datasets, so that a test of these is one of it."""
    return {
        f"{place} {id}": value / (len(d.methods[method].by_query) * len(report.datasets))
        for place, d in enumerate(report.datasets)
        for id, value in d.methods[method].by_query.items()
    }


def summarise(report: Report) -> tuple[str, ...]:
    """The sentences at the head of the page, which follow the same rules whatever the outcome."""
    sentences = [_main(report)]
    free = [name for name in ("evidence", "feedback") if name in report.methods]
    if report.subject not in free:
        sentences += [_against_free(report, name) for name in free]
    if report.subject == "listwise" and "prompt" in report.methods:
        sentences.append(_against_untrained(report))
    if report.subject == "rerank" and "listwise" in report.methods:
        sentences.append(_against_listwise(report))
    sentences += [*_second_mean(report), _queries(report), _time(report), *_caution(report)]
    return tuple(sentence[0].upper() + sentence[1:] for sentence in sentences)


def named(report: Report, method: str) -> str:
    """How sentences name a method."""
    if method == "rerank":
        return f"reranking with {report.reranker or report.model}"
    return "listwise reranking" if method == "listwise" else LABELS[method]


def _main(report: Report) -> str:
    subject, against = named(report, report.subject), named(report, report.against)
    found = compare(report, report.subject, report.against)
    start = (
        f"{subject} has a mean {MEASURE} of {_points(report, report.subject)} on "
        f"{_count(len(report.datasets), 'dataset')}, {against} has "
        f"{_points(report, report.against)}"
    )
    if found.equal:
        return f"{start}: {against} alone is as good here, {_equal(found)}."
    return f"{start}: {subject} is {_change(found, report)}."


def _against_free(report: Report, free: str) -> str:
    found = compare(report, report.subject, free)
    subject, name = named(report, report.subject), named(report, free)
    start = f"without any prompt, {name} has {_points(report, free)}"
    if found.equal:
        return f"{start}: it is as good as {subject}, {_equal(found)}."
    return f"{start}: {subject} is {_change(found, report)}."


def _against_untrained(report: Report) -> str:
    found = compare(report, "listwise", "prompt")
    start = f"the untrained prompt has {_points(report, 'prompt')}"
    if found.equal:
        return f"{start}: the trained adapter adds nothing to it, {_equal(found)}."
    return f"{start}: with the trained adapter it is {_change(found, report)}."


def _against_listwise(report: Report) -> str:
    found = compare(report, "rerank", "listwise")
    start = f"listwise reranking with {report.model} has {_points(report, 'listwise')}"
    subject = named(report, "rerank")
    if found.equal:
        return f"{start}: it is as good as {subject}, {_equal(found)}."
    return f"{start}: {subject} is {_change(found, report)}."


def _second_mean(report: Report) -> list[str]:
    after = report.mean(report.subject, without=True)
    before = report.mean(report.against, without=True)
    if not report.without or after is None or before is None:
        return []
    return [
        f"without {', '.join(report.without)} the mean gain over {named(report, report.against)} "
        f"is {100 * (after - before):+.1f} points."
    ]


def _queries(report: Report) -> str:
    gains = [
        d.methods[report.subject].by_query[id] - before
        for d in report.datasets
        for id, before in d.methods[report.against].by_query.items()
    ]
    won, lost = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return (
        f"of {_count(len(gains), 'query', 'queries')}, {won:,} have a better ranking than with "
        f"{named(report, report.against)}, {lost:,} a worse one, and {len(gains) - won - lost:,} "
        "an equally good one."
    )


def _time(report: Report) -> str:
    def ms(method: str) -> str:
        return f"{fmean(d.methods[method].median_ms for d in report.datasets):.0f} ms"

    return (
        f"one query takes {ms(report.subject)} with {named(report, report.subject)} and "
        f"{ms(report.against)} with {named(report, report.against)} on this machine (medians)."
    )


def _caution(report: Report) -> list[str]:
    cautions = []
    sampled = [d for d in report.datasets if d.queries < d.judged]
    if sampled:
        parts = ", ".join(f"{d.queries:,} of {d.judged:,} on {d.name}" for d in sampled)
        cautions.append(f"not all judged queries were measured: {parts}, spread evenly.")
    few = [d.name for d in report.datasets if d.queries < FEW_QUERIES]
    if few:
        cautions.append(
            f"fewer than {FEW_QUERIES} queries ({', '.join(few)}) show only large differences: no "
            "star there does not mean no difference."
        )
    return cautions


def _change(found: Compared, report: Report) -> str:
    """Such as "2.5 points higher on the mean (p = 0.012), significantly better on a"."""
    direction = "higher" if found.points > 0 else "lower"
    mean = " on the mean" if len(report.datasets) > 1 else ""
    chance = "" if found.p < LEVEL else ", which chance may explain"
    return (
        f"{abs(found.points):.1f} points {direction}{mean} ({p_text(found.p)}){chance}"
        f"{_where(found, report)}"
    )


def _equal(found: Compared) -> str:
    return f"the difference of {found.points:+.1f} points may be chance ({p_text(found.p)})"


def _where(found: Compared, report: Report) -> str:
    """On which of several datasets the difference is significant by itself."""
    if len(report.datasets) == 1:
        return ""
    parts = []
    if found.better:
        parts.append(f"significantly better on {', '.join(found.better)}")
    if found.worse:
        parts.append(f"significantly worse on {', '.join(found.worse)}")
    rest = len(report.datasets) - len(found.better) - len(found.worse)
    if not parts:
        return "" if found.p >= LEVEL else "; on no dataset alone is the difference significant"
    if rest:
        parts.append(f"no difference beyond chance on the other {rest}")
    return f"; {', '.join(parts)}"


def p_text(p: float) -> str:
    """A p-value as sentences write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _points(report: Report, method: str) -> str:
    value = report.mean(method)
    assert value is not None
    return f"{100 * value:.1f}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
