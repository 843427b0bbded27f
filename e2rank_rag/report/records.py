"""What a report holds: plain records, which the page shows and the JSON file repeats.

Values of nDCG@10 are fractions, 0 to 1. Ranks begin at 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from e2rank_rag.evaluation.differences import Difference

MEASURE = "nDCG@10"
"""The measure of the whole report."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the times were measured on.

    cores: those that the process may use. threads: those that compute for the encoder.
    load: processes that waited for a processor in the minute before measuring; None: not known.
    """

    processor: str
    cores: int
    threads: int
    device: str
    dtype: str
    system: str
    load: float | None
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """One method on one dataset.

    mean: of nDCG@10 over the queries. by_query: query id -> nDCG@10.
    median_ms, slow_ms: the 50th and the 95th percentile of one query's time, from its text to its
        ranking, one query at a time.
    difference: from the method that others are compared with; None for that method itself.
    """

    mean: float
    by_query: Mapping[str, float]
    median_ms: float
    slow_ms: float
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Side:
    """The candidates inside the prompt, or those outside, as a list of their own.

    queries: those with a relevant candidate in this part; the others say nothing about it.
    before, after: the mean nDCG@10 of the part alone, as retrieved and as reranked.
    relevant: relevant candidates in the part. rank_before, rank_after: the mean of their ranks in
        the whole list; None if there are none.
    difference: of after from before; None without queries.
    """

    queries: int
    before: float
    after: float
    relevant: int
    rank_before: float | None
    rank_after: float | None
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Order:
    """The mean nDCG@10 when the same documents come in another order.

    given: as they were retrieved. shuffled: one value per shuffle. reversed: the last one first.
    """

    given: float
    shuffled: tuple[float, ...]
    reversed: float

    @property
    def spread(self) -> float:
        """The highest of all values minus the lowest."""
        values = (self.given, *self.shuffled, self.reversed)
        return max(values) - min(values)


@dataclass(frozen=True, slots=True)
class Depth:
    """One depth of the prompt.

    mean: of nDCG@10 over the queries. by_query: query id -> nDCG@10.
    documents, tokens: what a prompt held, the mean over the queries.
    cut: the share of these documents that were shortened to fit.
    own: whether it is the depth that the model uses by itself.
    """

    depth: int
    mean: float
    by_query: Mapping[str, float]
    documents: float
    tokens: float
    cut: float
    own: bool


@dataclass(frozen=True, slots=True)
class Held:
    """What the prompt of one query held: ids, first to last."""

    ids: tuple[str, ...]
    cut: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompts:
    """What can be measured of a reranker that reads a listwise prompt.

    order: of the documents within the prompt; the candidates stay in the given order.
    held: query id -> what its prompt held.
    """

    depth: tuple[Depth, ...]
    inside: Side
    outside: Side
    order: Order
    held: Mapping[str, Held]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Medians of document lengths in words: whether a dataset prefers long or short documents.

    relevant: of the relevant documents. retrieved: of the first ten of plain cosine.
    None: there are none.
    """

    relevant: float | None
    retrieved: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One document of a shown list.

    grade: None if nobody judged the document. other_rank: its rank in the other list; None: below
    all candidates. shown: whether the prompt held it. text: how its text begins.
    """

    rank: int
    id: str
    grade: int | None
    other_rank: int | None
    shown: bool
    text: str


@dataclass(frozen=True, slots=True)
class Deep:
    """A relevant document that is in neither of the two shown lists; None: it is no candidate."""

    id: str
    grade: int
    rank_before: int | None
    rank_after: int | None
    shown: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One query with its list before and after reranking, ten documents each.

    held: what the prompt held; None for a reranker without a listwise prompt.
    rows_held: the documents that the prompt held, first to last, with their ranks before (`rank`)
        and after (`other_rank`).
    deep: relevant documents below the tenth rank in both lists.
    """

    dataset: str
    query_id: str
    query: str
    before: float
    after: float
    rows_before: tuple[Row, ...]
    rows_after: tuple[Row, ...]
    rows_held: tuple[Row, ...]
    deep: tuple[Deep, ...]
    held: Held | None

    @property
    def gain(self) -> float:
        """After minus before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class DatasetFigures:
    """One split of one dataset.

    queries: how many were measured, of `judged` ones.
    left_out: queries whose own document was left out of their rankings.
    methods: method -> figures.
    order: of the candidates; None for a cross-encoder, which reads each document by itself.
    prompts: None for a reranker without a listwise prompt.
    """

    name: str
    split: str
    documents: int
    queries: int
    judged: int
    left_out: int
    methods: Mapping[str, MethodFigures]
    lengths: Lengths
    order: Order | None
    prompts: Prompts | None
    won: tuple[Case, ...]
    lost: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows.

    subject: the method that the report is about. against: the method that others are compared
    with. not_measured: method -> why.
    word_datasets: datasets on which BM25 is far above plain cosine. without: datasets that the
    second mean leaves out: these, and those that the caller named.
    """

    created: str
    model: str
    reranker: str | None
    subject: str
    against: str
    candidates: int
    machine: Machine
    datasets: tuple[DatasetFigures, ...]
    not_measured: Mapping[str, str]
    word_datasets: tuple[str, ...]
    without: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the order of the tables."""
        return tuple(self.datasets[0].methods)

    def mean(self, method: str, *, without: bool = False) -> float | None:
        """The mean of the datasets' means; None if all are left out.

        without: leave out the datasets of `without`.
        """
        left_out = self.without if without else ()
        values = [d.methods[method].mean for d in self.datasets if d.name not in left_out]
        return sum(values) / len(values) if values else None
