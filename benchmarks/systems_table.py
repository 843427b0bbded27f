"""Which system when: nDCG@10, tokens read and milliseconds of all systems on the same candidates.

    python benchmarks/systems_table.py DATA [NAME=FOLDER ...] [--cache FOLDER] [--queries N]

DATA holds BEIR folders; each NAME=FOLDER is a model that `load_reranker` opens, of any system.
Every system ranks the same 100 candidates: all-MiniLM-L6-v2's own, for MS MARCO the BM25 runs of
TREC DL 2019 and 2020 with NIST's whole qrels. `retrieve` is the plain cosine, `rocchio` is tuned on
the dev splits pooled. --queries N takes the first N of each collection, for all systems: a
cross-encoder reads 100 texts a query. p: paired randomisation test against `retrieve`, with Holm's
correction over the collections of a system.

Milliseconds and tokens are of single SciFact queries over the first 10, 20, 50 and 100 candidates,
as in systems_latency.py.

Writes benchmarks/results/systems_table.json and docs/systems.svg, and prints markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from adapter_table import DEV, NDCG, Task, read_task, tuned_rocchio
from machine import machine
from systems_latency import DEPTHS, one_round, summary

from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import BaseReranker, RocchioReranker, load_reranker, score_by_vector
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Hit

RESULTS = Path(__file__).parent / "results" / "systems_table.json"
PICTURE = Path(__file__).parents[1] / "docs" / "systems.svg"
COLLECTIONS = ("scifact", "cranfield", "medlars", "nfcorpus", "dl19+dl20", "bioasq_snippets")
TIMED_QUERIES = 20

Rerank = Callable[[Task], list[list[Hit]]]


def by_cosine(task: Task) -> list[list[Hit]]:
    pairs = zip(task.candidates, task.asked, strict=True)
    return [score_by_vector(hits, vector) for hits, vector in pairs]


def ndcg(task: Task, rankings: Sequence[list[Hit]]) -> dict[str, float]:
    run = run_from_rankings(dict(zip(task.ids, rankings, strict=True)))
    return {id: 100 * v[NDCG] for id, v in evaluate_by_query(run, task.qrels, [NDCG]).items()}


def measured(
    tasks: Sequence[Task], systems: Mapping[str, Rerank]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """nDCG@10 x 100 by collection and system, and p against `retrieve` by system and collection."""
    rows: dict[str, dict[str, float]] = {}
    p: dict[str, dict[str, float]] = {name: {} for name in systems if name != "retrieve"}
    print(f"| nDCG@10 | queries | {' | '.join(systems)} |\n|---|---|{'---|' * len(systems)}")
    for task in tasks:
        values = {name: ndcg(task, rerank(task)) for name, rerank in systems.items()}
        rows[task.name] = {name: fmean(each.values()) for name, each in values.items()}
        for name in p:
            p[name][task.name] = paired_randomization_test(values[name], values["retrieve"])
        _print_row(task.name, len(task.ids), rows[task.name])
    rows["mean"] = {name: fmean(row[name] for row in rows.values()) for name in systems}
    _print_row("**mean**", "", rows["mean"])
    return rows, {name: holm_correction(each) for name, each in p.items()}


def draw(rows: Mapping[str, Mapping[str, float]], times: Mapping[str, Any], path: Path) -> None:
    """Mean nDCG@10 over milliseconds per query, 100 candidates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, by_depth in times.items():
        x, y = by_depth[100]["milliseconds"]["median"], rows["mean"][name]
        axes.plot(x, y, "o")
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4))
    axes.axhline(rows["mean"]["retrieve"], linestyle=":", color="grey", label="retrieve")
    axes.set(xscale="log", xlabel="ms per query, 100 candidates, 2 cores", ylabel="mean nDCG@10")
    axes.legend()
    figure.savefig(path)


def _print_row(name: str, queries: object, row: Mapping[str, float]) -> None:
    figures = " | ".join(f"{value:.2f}" for value in row.values())
    print(f"| {name} | {queries} | {figures} |", flush=True)


def _print_times(times: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> None:
    print("| | tokens, 100 | " + " | ".join(f"ms, {depth}" for depth in DEPTHS) + " |")
    print("|---|---|" + "---|" * len(DEPTHS))
    for name, by_depth in times.items():
        cells = " | ".join(f"{by_depth[depth]['milliseconds']['median']:.1f}" for depth in DEPTHS)
        print(f"| {name} | {by_depth[100]['tokens']:.0f} | {cells} |")


def _named(argument: str) -> tuple[str, str]:
    name, separator, folder = argument.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {argument!r}")
    return name, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="*", type=_named, metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents")
    parser.add_argument("--queries", type=int, help="of each collection")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    base = Encoder.from_pretrained("minilm")
    cache = arguments.cache and arguments.cache / f"{base.fingerprint}.npz"
    known = TextVectors(base.dim, cache=cache)
    dev = [read_task(arguments.data, name, "dev", base, known) for name in DEV]
    documents, beta = tuned_rocchio(dev)
    rerankers: dict[str, BaseReranker] = {
        "rocchio": RocchioReranker(
            base, feedback_documents=documents, beta=beta, stored_vectors="trust"
        ),
        "e2rank": load_reranker("e2rank-minilm", stored_vectors="trust"),
        **{
            name: load_reranker(folder, stored_vectors="trust") for name, folder in arguments.models
        },
    }
    tasks = [read_task(arguments.data, name, "test", base, known) for name in COLLECTIONS]
    one_round(rerankers, tasks[0].queries[0], tasks[0].candidates[0])  # caches
    few = tasks[0].first(TIMED_QUERIES)
    rounds = [
        one_round(rerankers, query, hits)
        for query, hits in zip(few.queries, few.candidates, strict=True)
    ]
    times = summary(rounds)
    _print_times(times)
    if arguments.queries is not None:
        tasks = [task.first(arguments.queries) for task in tasks]
    systems: dict[str, Rerank] = {"retrieve": by_cosine}
    for name, reranker in rerankers.items():
        systems[name] = lambda task, reranker=reranker: reranker.rerank_batch(  # type: ignore[misc]
            task.queries, task.candidates
        )
    rows, p = measured(tasks, systems)
    for name, values in p.items():
        print(name, {collection: round(value, 4) for collection, value in values.items()})
    record = {
        "machine": machine(),
        "models": dict(arguments.models),
        "queries": {task.name: len(task.ids) for task in tasks},
        "rocchio": {"documents": documents, "beta": beta},
        NDCG: rows,
        "p, Holm": p,
        "times": times,
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    draw(rows, times, arguments.picture)


if __name__ == "__main__":
    main()
