"""Writes a report: an HTML page that needs nothing but itself, and the same in JSON.

Texts come from strangers. Jinja escapes every one for HTML, `printable` shows control characters
and lone surrogates as escapes, and the page's own policy allows no script and no request.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from e2rank_rag.evaluation.differences import LEVEL
from e2rank_rag.evaluation.systems import RERANK
from e2rank_rag.models.files import new_files
from e2rank_rag.report import plots, summary
from e2rank_rag.report.records import MEASURE, Order, Report
from e2rank_rag.terminal import json_text, printable

FORMAT = 1
"""The version of the JSON file's form."""


def json_path(page: Path) -> Path:
    """Where the JSON file of a page is."""
    return page.with_suffix(".json")


def write_report(report: Report, page: Path) -> None:
    """Write the page and, beside it, the JSON file: both or, if one cannot be written, none.

    page: a path that ends in .html; its folder is made if it is missing.

    Raises:
        ValueError: another ending.
    """
    if page.suffix.lower() != ".html":
        raise ValueError(f"a report is a page; name a file that ends in .html, got {page}")
    html, record = as_html(report), json_text(as_record(report)) + "\n"
    with new_files(page.parent) as folder:
        (folder / page.name).write_text(html, encoding="utf-8")
        (folder / json_path(page).name).write_text(record, encoding="utf-8")


def as_record(report: Report) -> dict[str, Any]:
    """Everything that the page shows, as JSON takes it; `means` are over the datasets."""
    record = {
        "format": FORMAT,
        "measure": MEASURE,
        "summary": list(summary.summarise(report)),
        "means": {name: report.mean(name) for name in report.methods},
        "means_without": {name: report.mean(name, without=True) for name in report.methods},
        "mean_differences": {
            name: asdict(found) for name, found in summary.mean_differences(report).items()
        },
        **asdict(report),
    }
    json.dumps(record, allow_nan=False)  # ValueError for a value that is no number
    return record


def as_html(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("e2rank_rag.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters |= {"points": _points, "signed": _signed, "p": _p}
    widest = plots.widest_gain(report)
    return environment.get_template("page.html.j2").render(
        report=report,
        summary=summary.summarise(report),
        mean_differences=summary.mean_differences(report),
        measure=MEASURE,
        level=LEVEL,
        label=summary.LABELS.__getitem__,
        named=partial(summary.named, report),
        meanings=summary.MEANINGS,
        words_points=summary.WORDS_POINTS,
        latency=plots.quality_and_latency(report),
        gains={d.name: plots.gains(report, d, widest) for d in report.datasets},
        depth=plots.depth_sweep(report),
        depths=next((d.prompts.depth for d in report.datasets if d.prompts), ()),
        order=plots.order_strip(report),
        orders=_orders(report),
        sorts=all(d.order is not None and d.order.spread == 0.0 for d in report.datasets),
        not_measured={name: why for name, why in report.not_measured.items() if name != RERANK},
        named_without=[name for name in report.without if name not in report.word_datasets],
    )


def _orders(report: Report) -> list[tuple[str, str, Order]]:
    """Dataset, what came in another order, and the values."""
    return [(d.name, what, order) for d in report.datasets for what, order in plots.orders(d)]


def _harmless(value: Any) -> Any:
    """What the page shows of a value; what templates made of it before stays as it is."""
    made = hasattr(value, "__html__")
    return printable(value) if isinstance(value, str) and not made else value


def _points(value: float | None, digits: int = 2) -> str:
    return "\u2013" if value is None else f"{100 * value:.{digits}f}"


def _signed(value: float, digits: int = 2) -> str:
    """A change in points, with its sign."""
    text = f"{100 * value:+.{digits}f}"
    return text.replace("-", "\u2212") if float(text) else f"{0:.{digits}f}"


def _p(value: float) -> str:
    return summary.p_text(value)
