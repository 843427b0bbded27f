"""Rankings and results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from e2rank_rag.evaluation.systems import SystemResult
from e2rank_rag.explanation import Explanation, Parts
from e2rank_rag.terminal import printable
from e2rank_rag.types import Hit
from e2rank_rag.verify import PUBLISHED, Verification

if TYPE_CHECKING:
    from e2rank_rag.evaluation.differences import Difference, Differences

TITLE_WIDTH = 44

WIDE = 110
"""Characters that a table of explanations takes with headlines."""


def headline(hit: Hit, *, width: int = TITLE_WIDTH) -> str:
    """The title of a document, or how its text begins, on one line."""
    text = _one_line(str(hit.document.meta.get("title") or hit.document.text))
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def hits_table(hits: Sequence[Hit], *, title: str) -> Table:
    """One ranking: rank, score, id and headline."""
    table = Table(
        "#", "score", "id", "document", title=Text(printable(title)), title_justify="left"
    )
    for place, hit in enumerate(hits, start=1):
        table.add_row(
            str(place),
            f"{hit.score:.3f}",
            Text(_one_line(hit.document.id)),
            Text(headline(hit, width=80)),
        )
    return table


def explanation_table(hits: Sequence[Hit], *, title: str, width: int = 120) -> Table:
    """One ranking with explanations: the scores, the plain cosines, and the parts of each score.

    The last row has the averages of all candidates: what is above them lifts a document. A part
    that no document has is left out.

    width: the terminal's width in characters. Below `WIDE` the earlier scores, the cosines and the
        headlines are left out.
    """
    told = [(hit, hit.explanation) for hit in hits if hit.explanation is not None]
    kept = _kept_parts([explanation.parts for _, explanation in told])
    wide = width >= WIDE
    names = ["was", "score", *(["cosine"] if kept else []), *kept]
    names = [name for name in names if wide or name not in ("was", "cosine")]
    table = Table(title=Text(printable(title)), title_justify="left")
    for column in ("#", "", *names, "document"):
        right = column not in ("", "document")
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    for hit, each in told:
        figures = {"was": each.score_before, "score": each.score, "cosine": each.cosine}
        shown = _one_line(hit.document.id)
        if wide:
            shown = f"{shown}  {headline(hit, width=60)}"
        cells = _figures(names, figures, each.parts)
        table.add_row(str(each.rank), _move(each.rank_before, each.rank), *cells, Text(shown))
    average = told[0][1].average if told else None
    if average is not None:
        table.add_section()
        cells = _figures(names, {"score": average.score}, average)
        table.add_row("", "", *cells, "average of all candidates" if wide else "average")
    return table


def pulls_table(hits: Sequence[Hit], *, most: int = 3, width: int = 120) -> Table:
    """For each hit with an explanation, what pulled it and which words it holds.

    most: how many documents, words and words of the expansion to name. A document stands with its
    cosine and, where it is in the mean of feedback, what it gives the feedback part.
    width: the terminal's width in characters. Below `WIDE` the headlines are here.
    """
    table = Table("#", "document", "documents read: cosine (part)", "words", "words of the best")
    table.columns[0].justify = "right"
    for hit in hits:
        each = hit.explanation
        if each is not None:
            table.add_row(
                str(each.rank),
                Text(_one_line(hit.document.id) + ("" if width >= WIDE else f"  {headline(hit)}")),
                Text(_pulls(each, hit.document.id, most)),
                Text(_words(each.words, most)),
                Text(_words(each.expansion_words, most)),
            )
    return table


def _figures(
    names: Sequence[str], figures: Mapping[str, float | None], parts: Parts | None
) -> list[str]:
    """A row's figures and parts by the names of the columns; nothing where there is none."""
    values = {**figures, **({} if parts is None else asdict(parts))}
    found = [values.get(name) for name in names]
    # A sum of rounding errors is no -0.000.
    return ["" if value is None else f"{value:z.3f}" for value in found]


def _kept_parts(parts: Sequence[Parts | None]) -> list[str]:
    """The names of the parts that some document has."""
    names = [each.name for each in fields(Parts)]
    return [name for name in names if any(each and getattr(each, name) for each in parts)]


def _pulls(explanation: Explanation, id: str, most: int) -> str:
    # Without feedback the shares are all 0.
    nearest = sorted(explanation.pulls, key=lambda pull: (-pull.part, -pull.cosine))[:most]
    return ", ".join(
        f"{'itself' if pull.id == id else _one_line(pull.id)} {pull.cosine:.2f}"
        + (f" ({pull.part:+.3f})" if pull.weight else "")
        for pull in nearest
    )


def _words(words: Mapping[str, float], most: int) -> str:
    heaviest = list(words.items())[:most]
    return ", ".join(f"{printable(stem)} {weight:.1f}" for stem, weight in heaviest)


def before_after_table(
    before: Sequence[Hit],
    after: Sequence[Hit],
    *,
    title: str,
    relevant: Collection[str] = (),
    rows: int = 10,
    width: int = 120,
) -> Table:
    """Candidates before and after reranking; ● marks relevant documents, arrows mark moves.

    rows: how many ranks to show; moves are counted over all candidates.
    width: the terminal's width in characters; headlines are shortened to fit it.
    """
    # Borders, padding, ranks, two scores, moves and marks take the rest.
    each = max(12, min(TITLE_WIDTH, (width - 38) // 2))
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold")
    for column in ("#", "retrieved", "score", "", "reranked", "score"):
        right = column in ("#", "score")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    places = {hit.document.id: place for place, hit in enumerate(before, start=1)}
    pairs = zip(before[:rows], after[:rows], strict=False)
    for place, (old, new) in enumerate(pairs, start=1):
        table.add_row(
            str(place),
            _marked(old, relevant, each),
            f"{old.score:.3f}",
            _move(places.get(new.document.id), place),
            _marked(new, relevant, each),
            f"{new.score:.3f}",
        )
    return table


def systems_table(
    results: Mapping[str, SystemResult],
    *,
    title: str,
    differences: Differences | None = None,
) -> Table:
    """One row per method: measures in points (0 to 100) and milliseconds per query.

    differences: adds wins, ties, losses and p in the first measure, and a star to every figure
        that differs significantly.
    """
    measures = list(next(iter(results.values())).measures)
    found: Mapping[str, Mapping[str, Difference]] = {}
    compared: list[str] = []
    if differences is not None and differences.by_method:
        found = differences.by_method
        compared = [f"{measures[0]} against {differences.against}", "p (Holm)"]
    table = Table(
        "system",
        *(escape(printable(column)) for column in (*measures, *compared)),
        "ms/query",
        title=Text(printable(title)),
        title_justify="left",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        figures = result.measures
        cells = [f"{100 * figures[measure]:.2f}" for measure in measures]
        if found:
            own = found.get(name, {})
            cells = [
                f"{cell}{'*' if measure in own and own[measure].significant else ' '}"
                for cell, measure in zip(cells, measures, strict=True)
            ]
            cells += _difference(own.get(measures[0]))
        table.add_row(Text(printable(name)), *cells, f"{1000 * result.seconds_per_query:.0f}")
    return table


def _difference(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    p = "<0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}"
    return f"+{difference.wins} ={difference.ties} -{difference.losses}", p


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _marked(hit: Hit, relevant: Collection[str], width: int) -> Text:
    shown = headline(hit, width=width)
    if hit.document.id in relevant:
        return Text(f"● {shown}", style="bold green")
    return Text(f"  {shown}")


def _move(old: int | None, new: int) -> Text:
    if old is None:
        return Text("new", style="cyan")
    if old == new:
        return Text("=", style="dim")
    return Text(f"↑{old - new}", style="green") if old > new else Text(f"↓{new - old}", style="red")


def verification_table(result: Verification) -> Table:
    """Published cosines and ours: one row per source, one column per query and document."""
    table = Table("cosines", "q1 d1", "q1 d2", "q2 d1", "q2 d2", title="E2Rank README example")
    rows = {f"published: {name}": np.array(values) for name, values in PUBLISHED.items()}
    rows |= {"ours: plain": result.plain, "ours: listwise": result.listwise}
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in values.ravel()))
    return table
