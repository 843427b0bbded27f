"""What the notebooks share: a slice of SciFact, a table of figures, pictures of ranks and scores.

scifact = scifact_slice()
rank_picture(before, after, scifact)    # before and after: query id -> ranked document ids
explanation_picture(hits)               # hits of a reranking with explain=True
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from rich.table import Table

from e2rank_rag.data import shipped_collection
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.explanation import Explanation, Parts
from e2rank_rag.terminal import printable
from e2rank_rag.types import Document, Hit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rankings = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""

LABEL_WIDTH = 52


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a dataset. documents: in corpus order; queries: id -> text; qrels: judgements."""

    documents: list[Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def scifact_slice(claims: int = 40, *, hard_negatives: int = 8) -> Slice:
    """The first claims of SciFact's test split, with the abstracts that are hard to tell apart.

    The documents are the abstracts that are judged for these claims, and for each claim the
    abstracts that BM25 ranks first among all 5,183.

    claims: at most 300, the size of the split; hard_negatives: abstracts per claim, at least 0.
    """
    dataset = shipped_collection("scifact")
    queries = dict(list(dataset.queries("test").items())[:claims])
    judgements = dataset.qrels("test")
    qrels = {claim: judgements[claim] for claim in queries}
    corpus = list(dataset.documents())
    kept = {id for grades in qrels.values() for id in grades}
    if hard_negatives:
        kept |= _first_by_bm25(list(queries.values()), corpus, hard_negatives)
    return Slice([document for document in corpus if document.id in kept], queries, qrels)


def _first_by_bm25(queries: Sequence[str], corpus: Sequence[Document], count: int) -> set[str]:
    import bm25s

    def words(texts: list[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", return_ids=False, show_progress=False
        )
        return tokens

    index = bm25s.BM25()
    index.index(words([document.text for document in corpus]), show_progress=False)
    places, _ = index.retrieve(words(list(queries)), k=count, show_progress=False)
    return {corpus[place].id for row in places for place in row}


def rank_of_first(ranking: Sequence[str], relevant: Collection[str]) -> int | None:
    """The rank of the first relevant document, from 1; None if the ranking holds none."""
    return next((rank for rank, id in enumerate(ranking, start=1) if id in relevant), None)


def figures_table(
    rankings: Mapping[str, Rankings], qrels: Mapping[str, Mapping[str, int]], *, first: int = 5
) -> Table:
    """One row per method: nDCG@10 x 100, and how many queries have a relevant document early.

    rankings: method name -> its rankings; first: how many documents count as early.
    """
    columns = ("method", "nDCG@10", f"relevant in the first {first}", "relevant on rank 1")
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, ranked in rankings.items():
        run = {query: {id: -float(i) for i, id in enumerate(ids)} for query, ids in ranked.items()}
        figure = evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]
        ranks = [rank_of_first(ranked.get(query, ()), qrels[query]) for query in qrels]
        counts = [sum(rank is not None and rank <= k for rank in ranks) for k in (first, 1)]
        table.add_row(name, f"{100 * figure:.2f}", *(f"{n} of {len(ranks)}" for n in counts))
    return table


def rank_picture(before: Rankings, after: Rankings, scifact: Slice, *, first: int = 5) -> Figure:
    """Arrows from the old to the new rank of each query's first relevant document.

    Only queries whose rank changes are drawn. The grey area is the first documents, which a
    language model would read. A notebook shows the figure that a cell ends with.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a query's relevant document is missing from one of its rankings.
    """
    pyplot = _pyplot()
    moves = _moves(before, after, scifact)
    figure: Figure
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(moves) + 1.2), layout="constrained")
    axes.axvspan(0.8, first + 0.5, color="0.93")
    for row, (_, old, new) in enumerate(moves):
        color = "tab:green" if new < old else "tab:red"
        axes.plot(old, row, "o", color="0.5")
        arrow = {"arrowstyle": "->", "color": color, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (new, row), (old, row), arrowprops=arrow)
    ticks = [1, 2, 3, 5, 10, 20, 50, 100]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.8, 110)
    axes.set_yticks(
        range(len(moves)), [shorten(text, LABEL_WIDTH, placeholder=" …") for text, _, _ in moves]
    )
    axes.set_xlabel("rank of the first relevant document (1 is best)")
    axes.set_title(f"{len(moves)} of {len(scifact.queries)} queries change")
    pyplot.close(figure)  # else a notebook would show it twice
    return figure


def explanation_picture(hits: Sequence[Hit], *, first: int = 10) -> Figure:
    """Bars that say why the first hits have their scores: each part, less its average.

    Bars to the right lift a document, bars to the left hold it back; the dot is their sum, which is
    the score less the average score. The labels have the ranks before and after.

    hits: with explanations that have parts, best first.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no hit has an explanation with parts.
    """
    pyplot = _pyplot()
    rows = [(hit, hit.explanation) for hit in hits[:first] if hit.explanation is not None]
    above = [each.parts.above(each.average) for _, each in rows if each.parts and each.average]
    if not rows or len(above) < len(rows):
        raise ValueError(
            "no hit has parts of its score: rerank with explain=True, and with a reranker whose "
            "scores are sums (no ResRank, cross-encoder or window)"
        )
    figure: Figure
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(rows) + 1.4), layout="constrained")
    ends = {sign: [0.0] * len(rows) for sign in (-1, 1)}
    for name in (each.name for each in fields(Parts)):
        widths = [getattr(parts, name) for parts in above]
        if not any(widths):
            continue
        lefts = [ends[-1 if width < 0 else 1][row] for row, width in enumerate(widths)]
        axes.barh(range(len(rows)), widths, left=lefts, label=name)
        for row, width in enumerate(widths):
            ends[-1 if width < 0 else 1][row] += width
    axes.plot([parts.score for parts in above], range(len(rows)), "ko", label="score")
    axes.axvline(0.0, color="0.4", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_yticks(range(len(rows)), [_label(*row) for row in rows], parse_math=False)
    axes.set_xlabel("above or below the average of all candidates")
    axes.legend(loc="best")
    pyplot.close(figure)  # else a notebook would show it twice
    return figure


def _label(hit: Hit, explanation: Explanation) -> str:
    before = "new" if explanation.rank_before is None else explanation.rank_before
    text = str(hit.document.meta.get("title") or hit.document.text)
    return f"{shorten(printable(text), LABEL_WIDTH, placeholder=' …')}  {before}→{explanation.rank}"


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install '.[plots]'") from error
    return pyplot


def _moves(before: Rankings, after: Rankings, scifact: Slice) -> list[tuple[str, int, int]]:
    """Query text, old and new rank where they differ; the greatest gains last."""
    moves = []
    for query, text in scifact.queries.items():
        relevant = scifact.qrels[query]
        old, new = (rank_of_first(ranked[query], relevant) for ranked in (before, after))
        if old is None or new is None:
            raise ValueError(f"query {query!r}: no relevant document in a ranking of it")
        if old != new:
            moves.append((text, old, new))
    return sorted(moves, key=lambda move: move[1] / move[2])


def quiet() -> None:
    """Keep progress bars and notices about shortened texts out of a notebook's output."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # from tqdm
    logging.getLogger("e2rank_rag").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
