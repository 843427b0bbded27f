"""Milliseconds and tokens of single queries, over 10 to 100 candidates with stored vectors.

A round times every system over one query, whose vector is remembered from the search, as it is in
a pipeline. Ratios are taken round by round. Used by systems_table.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from e2rank_rag.bench.pairs import spread
from e2rank_rag.rerankers import BaseReranker
from e2rank_rag.types import Hit

DEPTHS = (10, 20, 50, 100)

Round = dict[str, dict[int, dict[str, float]]]
"""By system and number of candidates: seconds and tokens of one round."""


def one_round(rerankers: Mapping[str, BaseReranker], query: str, found: Sequence[Hit]) -> Round:
    result: Round = {}
    for name, reranker in rerankers.items():
        if reranker.vectors is not None:
            reranker.vectors.encoder.encode_queries([query])
        for depth in DEPTHS:
            started = time.perf_counter()
            report = reranker.rerank_batch([query], [found[:depth]]).report
            seconds = time.perf_counter() - started
            tokens = float(sum(prompt.tokens for prompt in report.prompts))
            result.setdefault(name, {})[depth] = {"seconds": seconds, "tokens": tokens}
    return result


def summary(rounds: Sequence[Round]) -> dict[str, dict[int, dict[str, Any]]]:
    """Milliseconds (min, median, max) and mean tokens."""
    return {
        name: {
            depth: {
                "milliseconds": spread([1000 * each[name][depth]["seconds"] for each in rounds]),
                "tokens": statistics.fmean(each[name][depth]["tokens"] for each in rounds),
            }
            for depth in DEPTHS
        }
        for name in rounds[0]
    }


def ratios(rounds: Sequence[Round], other: str) -> dict[str, dict[str, dict[str, float]]]:
    """Of 100 candidates: time and tokens of the systems over another's, round by round."""
    return {
        one: {
            part: spread([each[one][100][part] / each[other][100][part] for each in rounds])
            for part in ("seconds", "tokens")
        }
        for one in rounds[0]
        if one != other and rounds[0][one][100]["tokens"]
    }


def times_table(times: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Markdown, of what `summary` gave and JSON kept: medians."""
    lines = ["| | tokens, 100 | " + " | ".join(f"ms, {depth}" for depth in DEPTHS) + " |"]
    lines.append("|---" * (len(DEPTHS) + 2) + "|")
    for name, by_depth in times.items():
        cells = " | ".join(
            f"{by_depth[str(depth)]['milliseconds']['median']:.1f}" for depth in DEPTHS
        )
        lines.append(f"| {name} | {by_depth['100']['tokens']:.0f} | {cells} |")
    return lines


def ratios_table(
    by_other: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
) -> list[str]:
    """Markdown: the median, least and most of the times, and the median of the tokens."""
    lines = ["| 100 candidates | time | tokens |", "|---|---|---|"]
    for other, rows in by_other.items():
        for one, parts in rows.items():
            seconds, tokens = parts["seconds"], parts["tokens"]
            span = f"{seconds['min']:.2f} to {seconds['max']:.2f}"
            cells = f"{seconds['median']:.2f} ({span}) | {tokens['median']:.2f}"
            lines.append(f"| {one} / {other} | {cells} |")
    return lines
