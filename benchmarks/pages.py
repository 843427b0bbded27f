"""Figures of datasets as markdown, and markdown into a page between its marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from e2rank_rag.evaluation.differences import LEVEL

Figures = Mapping[str, Mapping[str, float]]
Tests = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""row -> dataset -> what a `Difference` holds, and the row that it is `against`."""


def datasets_table(
    figures: Figures, queries: Mapping[str, int], tests: Mapping[str, Tests], default: str
) -> list[str]:
    """One line per row, one column per dataset of `queries`, then their mean.

    A row may lack datasets, and then has no mean.

    tests: by the sign that is put beside a figure whose difference is significant.
    """
    heads = [f"{name} ({count})" for name, count in queries.items()]
    lines = [f"| dataset (queries) | {' | '.join(heads)} | mean |", f"|{'---|' * (len(heads) + 2)}"]
    for row, values in figures.items():
        cells = []
        for name in queries:
            if name not in values:
                cells.append("")
                continue
            found = {sign: by[row].get(name) for sign, by in tests.items()}
            signs = [sign for sign, test in found.items() if test and test["p_holm"] < LEVEL]
            cells.append(f"{values[name]:.2f}{''.join(signs)}")
        whole = all(name in values for name in queries)
        cells.append(f"{fmean(values[name] for name in queries):.2f}" if whole else "")
        lines.append(f"| {f'**{row}**' if row == default else row} | {' | '.join(cells)} |")
    return lines


def changes_table(figures: Figures, tests: Sequence[Tests], row: str) -> list[str]:
    """One line per tested dataset: one row of the figures against the others, query by query."""
    head = "against | change | + = - | p (Holm) |"
    lines = [f"| {row} | {' '.join([head] * len(tests))}", f"|{'---|' * (1 + 4 * len(tests))}"]
    for name in tests[0][row]:
        cells = []
        for test in tests:
            found = test[row][name]
            change = figures[row][name] - figures[found["against"]][name]
            p = "<0.001" if found["p_holm"] < 0.001 else f"{found['p_holm']:.3f}"
            counts = "+{wins} ={ties} -{losses}".format(**found)
            cells += [found["against"], f"{change:+.2f}", counts, p]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def write_into(page: Path, lines: Sequence[str], script: str) -> None:
    """Between the page's two marks, which name the script, in place of what is there."""
    marks = f"<!-- {script} begins -->", f"<!-- {script} ends -->"
    before, begin, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{page} has no lines {marks[0]!r} and {marks[1]!r} to write between")
    page.write_text("\n".join([before + begin, "", *lines, "", end + after]), encoding="utf-8")
