"""Pictures of a result, one SVG for each part that has something to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_matplotlib() -> None:
    """Raises ImportError, with what to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "e2rank-rag[plots]"') from error


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `PART.svg` for each drawn part into the folder; their paths."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    written = []
    for name, part in result["parts"].items():
        if name not in _DRAWN:
            continue
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        _DRAWN[name](figure.subplots(), part)
        path = folder / f"{name}.svg"
        # Text as text, and the same bytes for the same figures.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            figure.savefig(path, metadata={"Date": None})
        written.append(path)
    return written


def _encode(axes: Axes, part: Mapping[str, Any]) -> None:
    """Documents a second, with the least and the most of the rounds."""
    last = part["by_threads"][-1]
    names = list(last["sides"])[::-1]
    rows = [last["sides"][name] for name in names]
    rates = [row["documents_per_second"] for row in rows]
    low = [
        rate - row["documents"] / row["wall"]["max"] for rate, row in zip(rates, rows, strict=True)
    ]
    high = [
        row["documents"] / row["wall"]["min"] - rate for rate, row in zip(rates, rows, strict=True)
    ]
    axes.barh(names, rates, xerr=[low, high])
    axes.set_xlabel(f"documents a second (threads: {last['threads']})")


def _query(axes: Axes, part: Mapping[str, Any]) -> None:
    """Where the milliseconds of a whole query go, stacked by phase."""
    names = [f"{each['dtype']}, {kind}" for each in part["by_dtype"] for kind in each["phases_ms"]]
    found = [ms for each in part["by_dtype"] for ms in each["phases_ms"].values()]
    begin = [0.0] * len(names)
    for phase in found[0]:
        if phase == "sum":
            continue
        ms = [each[phase] for each in found]
        axes.barh(names, ms, left=begin, label=phase)
        begin = [before + more for before, more in zip(begin, ms, strict=True)]
    axes.set_xlabel("ms of a query, medians by phase")
    axes.legend(fontsize="small")


def _candidates(axes: Axes, part: Mapping[str, Any]) -> None:
    """Milliseconds by number of candidates, both on logarithmic scales."""
    for style, each in zip(("-", "--"), part["by_dtype"], strict=False):
        counts = [int(count) for count in each["by_candidates"]]
        for place, name in enumerate(each["sides"]):
            ms = [sides[name]["ms"]["median"] for sides in each["by_candidates"].values()]
            label = f"{name}, {each['dtype']}"
            axes.loglog(counts, ms, style, marker="o", color=f"C{place}", label=label)
    axes.set_xlabel("candidates")
    axes.set_ylabel("ms, query text to ten documents")
    axes.legend(fontsize="small")


def _depth(axes: Axes, part: Mapping[str, Any]) -> None:
    """Milliseconds by number of documents in the prompt."""
    depths = [int(depth) for depth in part["by_depth"]]
    rows = part["by_depth"].values()
    axes.plot(depths, [row["ms"]["p50"] for row in rows], marker="o", label="reranking")
    axes.plot(depths, [row["prompt_ms"]["p50"] for row in rows], marker="o", label="its prompt")
    axes.set_xlabel("depth: documents in the prompt")
    axes.set_ylabel("ms, p50")
    axes.set_ylim(bottom=0)
    axes.legend()


def _engines(axes: Axes, part: Mapping[str, Any]) -> None:
    """Milliseconds by number of documents, both on logarithmic scales."""
    counts = [int(count) for count in part["by_documents"]]
    for name in next(iter(part["by_documents"].values())):
        ms = [engines[name]["ms"]["p50"] for engines in part["by_documents"].values()]
        axes.loglog(counts, ms, marker="o", label=name)
    axes.set_xlabel("documents")
    axes.set_ylabel("ms of a search, p50")
    axes.legend()


_DRAWN: Mapping[str, Callable[[Axes, Mapping[str, Any]], None]] = {
    "encode": _encode,
    "query": _query,
    "candidates": _candidates,
    "depth": _depth,
    "engines": _engines,
}
