"""Rankings in float32 and in the dtype that `auto` takes: nDCG@10, and equal documents on top.

    python benchmarks/dtype_table.py DATA [--cache FOLDER] [--queries 400] [--only NAME]...

DATA holds BEIR folders. Each dtype encodes documents, queries and prompts by itself: plain cosine
(`retrieve`) and e2rank-minilm over its own 100 nearest documents (`listwise`); a third ranking has
float32's documents and the other dtype's queries and prompts, as an index has that stays. For MS
MARCO all rank the BM25 runs of TREC DL 2019 and 2020. With --cache, vectors of documents are kept
in a folder for each dtype.

Writes benchmarks/results/dtype_table.json and the table in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pages import write_into
from tasks import CANDIDATES, DENSE, UNSEEN_COLLECTIONS, UNSEEN_SPLITS, Reader, Task

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import ListwiseReranker

RESULTS = Path(__file__).parent / "results" / "dtype_table.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TOP = 10


def reranked(encoder: Encoder, task: Task) -> tuple[dict[str, float], list[list[str]]]:
    """nDCG@10 by query, and the ids of each ranking."""
    rankings = ListwiseReranker(encoder, stored_vectors="trust").rerank_batch(
        task.queries, task.candidates
    )
    return task.values_of(rankings), [[hit.document.id for hit in hits] for hits in rankings]


def retrieved(task: Task) -> tuple[dict[str, float], list[list[str]]]:
    rows = task.rankings[DENSE]
    return task.values(rows), [[task.documents[row].id for row in each] for each in rows]


def overlap(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """The mean share of the first 10 documents that both rankings have."""
    pairs = zip(one, other, strict=True)
    return fmean(len({*a[:TOP]} & {*b[:TOP]}) / max(len(a[:TOP]), 1) for a, b in pairs)


def measured(exact: Task, low: Task, encoders: tuple[Encoder, Encoder]) -> dict[str, Any]:
    """nDCG@10 x 100 by dtype and method, and the overlaps with float32."""
    asked = encoders[1].encode_queries(exact.queries)
    mixed = replace(exact, asked=asked)
    if not exact.given:
        rankings = {**exact.rankings, DENSE: [r[:CANDIDATES] for r in mixed.searched(asked)]}
        mixed = replace(mixed, rankings=rankings)
    tasks = {
        "float32": (exact, encoders[0]),
        "low": (low, encoders[1]),
        "mixed": (mixed, encoders[1]),
    }
    found = {
        name: {"retrieve": retrieved(task), "listwise": reranked(encoder, task)}
        for name, (task, encoder) in tasks.items()
    }
    return {
        name: {
            method: {
                "nDCG@10": fmean(values.values()),
                "overlap": overlap(ids, found["float32"][method][1]),
            }
            for method, (values, ids) in by_method.items()
        }
        for name, by_method in found.items()
    }


def table(record: dict[str, Any]) -> list[str]:
    low = record["dtype"]
    lines = [
        f"| nDCG@10 x 100 | retrieve, float32 | {low} | index in float32 | listwise, float32 "
        f"| {low} | index in float32 | top {TOP} equal, {low}: retrieve | listwise |",
        "|---" * 9 + "|",
    ]

    def line(name: str, rows: Sequence[dict[str, Any]]) -> str:
        cells = [
            f"{fmean(row[kind][method]['nDCG@10'] for row in rows):.2f}"
            for method in ("retrieve", "listwise")
            for kind in ("float32", "low", "mixed")
        ]
        cells += [
            f"{100 * fmean(row['low'][method]['overlap'] for row in rows):.1f}%"
            for method in ("retrieve", "listwise")
        ]
        return f"| {name} | {' | '.join(cells)} |"

    datasets = record["datasets"]
    lines += [line(f"{name} ({row['queries']})", [row]) for name, row in datasets.items()]
    return [*lines, line("mean", [*datasets.values()])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--only", action="append", help="these datasets alone")
    arguments = parser.parse_args()
    names = arguments.only or [*UNSEEN_COLLECTIONS, *UNSEEN_SPLITS]
    encoders = tuple(
        Encoder.from_pretrained("e2rank-minilm", dtype=dtype, device="cpu")
        for dtype in ("float32", "auto")
    )
    low = str(encoders[1].dtype).removeprefix("torch.")
    if low == "float32":
        raise SystemExit("auto is float32 on this processor: there is nothing to compare")
    readers = []
    for encoder in encoders:
        folder = str(encoder.dtype).removeprefix("torch.")
        cache = None if arguments.cache is None else arguments.cache / folder
        readers.append(Reader.of(arguments.data, encoder, cache, arguments.queries))
    record: dict[str, Any] = {
        "machine": this_machine() | {"command": Path(__file__).name},
        "dtype": low,
        "datasets": {},
    }
    for name in names:
        exact, rounded = (reader.read(name, "test") for reader in readers)
        row = measured(exact, rounded, (encoders[0], encoders[1]))
        record["datasets"][name] = {"queries": len(exact.ids), **row}
        print(name, json.dumps(row))
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    write_into(PAGE, table(record), Path(__file__).name)


if __name__ == "__main__":
    main()
