"""What a report says in sentences, all of them computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from e2rank_rag.evaluation.differences import LEVEL, Difference, Values, differences
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


Pairs = Mapping[str, tuple[Values, Values]]
"""dataset -> the values of one method and those of another, by query."""


def compare(pairs: Pairs) -> Compared:
    """How one method differs from another, dataset by dataset and on the mean."""
    change = {name: fmean(a.values()) - fmean(b.values()) for name, (a, b) in pairs.items()}
    significant = [name for name, found in differences(pairs).items() if found.significant]
    one, other = (_shares([both[place] for both in pairs.values()]) for place in (0, 1))
    return Compared(
        points=100 * fmean(change.values()),
        p=paired_randomization_test(one, other),
        better=[name for name in significant if change[name] > 0],
        worse=[name for name in significant if change[name] < 0],
    )


def methods_of(report: Report, method: str, other: str) -> Pairs:
    """The values of two methods on every dataset."""
    return {
        d.name: (d.methods[method].by_query, d.methods[other].by_query) for d in report.datasets
    }


def mean_differences(report: Report) -> dict[str, Difference]:
    """How each method's mean over the datasets differs from that of the compared method.

    Holm's correction is over the methods, as within a dataset.
    """
    shares = {
        name: _shares([d.methods[name].by_query for d in report.datasets])
        for name in report.methods
    }
    against = shares.pop(report.against)
    return differences({name: (share, against) for name, share in shares.items()})


def _shares(values: Sequence[Values]) -> dict[str, float]:
    """What each query adds to the mean over the datasets, so that a test of these is one of it.

    values: those of each dataset.
    """
    return {
        f"{place} {id}": value / (len(each) * len(values))
        for place, each in enumerate(values)
        for id, value in each.items()
    }


def summarise(report: Report) -> tuple[str, ...]:
    """The sentences at the head of the page, which follow the same rules whatever the outcome."""
    sentences = [_main(report), *_best(report)]
    free = [name for name in ("evidence", "feedback") if name in report.methods]
    if report.subject not in free:
        sentences += [_against_free(report, name) for name in free]
    if report.subject == "listwise" and "prompt" in report.methods:
        sentences.append(_against_untrained(report))
    if report.subject == "rerank" and "listwise" in report.methods:
        sentences.append(_against_listwise(report))
    sentences += [
        *_documents(report),
        *_second_mean(report),
        _queries(report),
        _time(report),
        *_caution(report),
    ]
    return tuple(sentence[0].upper() + sentence[1:] for sentence in sentences)


def named(report: Report, method: str) -> str:
    """How sentences name a method."""
    if method == "rerank":
        return f"reranking with {report.reranker or report.model}"
    return "listwise reranking" if method == "listwise" else LABELS[method]


def _main(report: Report) -> str:
    subject, against = named(report, report.subject), named(report, report.against)
    found = compare(methods_of(report, report.subject, report.against))
    start = (
        f"{subject} has a mean {MEASURE} of {_points(report, report.subject)} on "
        f"{_count(len(report.datasets), 'dataset')}, {against} has "
        f"{_points(report, report.against)}"
    )
    if found.equal:
        return f"{start}: {against} alone is as good here, {_equal(found)}."
    return f"{start}: {subject} is {_change(found, report)}."


def _best(report: Report) -> list[str]:
    # The first of equal ones, so that no other method is named for the same mean.
    order = dict.fromkeys((report.subject, report.against, *report.methods))
    best = max(order, key=lambda name: report.mean(name) or 0.0)
    if best in (report.subject, report.against):
        return []
    return [f"the highest mean is that of {named(report, best)}: {_points(report, best)}."]


def _against_free(report: Report, free: str) -> str:
    found = compare(methods_of(report, report.subject, free))
    subject, name = named(report, report.subject), named(report, free)
    start = f"without any prompt, {name} has {_points(report, free)}"
    if found.equal:
        return f"{start}: it is as good as {subject}, {_equal(found)}."
    return f"{start}: {subject} is {_change(found, report)}."


def _against_untrained(report: Report) -> str:
    found = compare(methods_of(report, "listwise", "prompt"))
    start = f"the untrained prompt has {_points(report, 'prompt')}"
    if found.equal:
        return f"{start}: the trained adapter adds nothing to it, {_equal(found)}."
    return f"{start}: with the trained adapter it is {_change(found, report)}."


def _against_listwise(report: Report) -> str:
    found = compare(methods_of(report, "rerank", "listwise"))
    start = f"listwise reranking with {report.model} has {_points(report, 'listwise')}"
    subject = named(report, "rerank")
    if found.equal:
        return f"{start}: it is as good as {subject}, {_equal(found)}."
    return f"{start}: {subject} is {_change(found, report)}."


def _documents(report: Report) -> list[str]:
    """What the documents in the prompt bring: against the same prompt with none."""
    pairs = {}
    for dataset in report.datasets:
        if dataset.prompts is not None:
            own = next(each for each in dataset.prompts.depth if each.own)
            none = next(each for each in dataset.prompts.depth if each.depth == 0)
            pairs[dataset.name] = own.by_query, none.by_query
    if not pairs or own is none:
        return []
    found, subject = compare(pairs), named(report, report.subject)
    without = 100 * fmean(fmean(none.values()) for _, none in pairs.values())
    start = f"without any document in its prompt, {subject} has {without:.1f}"
    if found.equal:
        return [f"{start}: the {own.depth} documents bring nothing, {_equal(found)}."]
    return [f"{start}: with {own.depth} documents it is {_change(found, report)}."]


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
