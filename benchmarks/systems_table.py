"""Which system when: nDCG@10, tokens read and milliseconds of all systems on the same candidates.

    python benchmarks/systems_table.py DATA [NAME=FOLDER ...] [--cache FOLDER] [--queries 100]

DATA holds BEIR folders; each NAME=FOLDER is a model that `load_reranker` opens, of any system.
Every system ranks the same 100 candidates: all-MiniLM-L6-v2's own, for MS MARCO the BM25 runs of
TREC DL 2019 and 2020 with NIST's whole qrels. `retrieve` is the plain cosine, `rocchio` is tuned on
the dev splits pooled. A cross-encoder reads 100 texts a query: it is measured, in bfloat16, on the
first --queries of each collection, and all systems on the same ones; those that read vectors on all
queries too. p: paired randomisation test against `retrieve`, with Holm's correction over the
collections of a system; of two cross-encoders also between them.

Milliseconds and tokens are of single SciFact queries over the first 10, 20, 50 and 100 candidates,
in float32, as systems_latency.py takes them, there for the prompt of e2rank without feedback too.

Writes benchmarks/results/systems_table.json, docs/systems.svg, and the tables in docs/systems.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from adapter_table import DEV, NDCG, Task, read_task, tuned_rocchio
from machine import machine
from systems_latency import Round, one_round, ratios, ratios_table, summary, times_table

from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.recipe import system_of
from e2rank_rag.rerankers import (
    BaseReranker,
    ListwiseReranker,
    RocchioReranker,
    load_reranker,
    score_by_vector,
)
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Hit

RESULTS = Path(__file__).parent / "results" / "systems_table.json"
PAGE = Path(__file__).parents[1] / "docs" / "systems.md"
PICTURE = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- systems_table.py begins -->", "<!-- systems_table.py ends -->"
COLLECTIONS = ("scifact", "cranfield", "medlars", "nfcorpus", "dl19+dl20", "bioasq_snippets")
TIMED_QUERIES = 20
PROMPT = "e2rank, prompt alone"

Rerank = Callable[[Task], list[list[Hit]]]


def reranked(reranker: BaseReranker, task: Task) -> list[list[Hit]]:
    return reranker.rerank_batch(task.queries, task.candidates)


def by_cosine(task: Task) -> list[list[Hit]]:
    pairs = zip(task.candidates, task.asked, strict=True)
    return [score_by_vector(hits, vector) for hits, vector in pairs]


def ndcg(task: Task, rankings: Sequence[list[Hit]]) -> dict[str, float]:
    run = run_from_rankings(dict(zip(task.ids, rankings, strict=True)))
    return {id: 100 * v[NDCG] for id, v in evaluate_by_query(run, task.qrels, [NDCG]).items()}


class Quality:
    """nDCG@10 x 100 by collection, system and query, and p values of the systems' differences."""

    def __init__(self, tasks: Sequence[Task], systems: Mapping[str, Rerank]) -> None:
        self.systems = list(systems)
        self.values: dict[str, dict[str, dict[str, float]]] = {}
        for task in tasks:
            self.values[task.name] = {
                name: ndcg(task, rerank(task)) for name, rerank in systems.items()
            }
            print(task.name, self.rows()[task.name], flush=True)

    def rows(self) -> dict[str, dict[str, float]]:
        rows = {
            collection: {name: fmean(each.values()) for name, each in values.items()}
            for collection, values in self.values.items()
        }
        return rows | {
            "mean": {name: fmean(row[name] for row in rows.values()) for name in self.systems}
        }

    def p(self, one: str, other: str) -> dict[str, float]:
        """By collection, with Holm's correction over them."""
        return holm_correction(
            {
                collection: paired_randomization_test(values[one], values[other])
                for collection, values in self.values.items()
            }
        )

    def markdown(self) -> list[str]:
        """A star: another figure than `retrieve` has, at p < 0.05."""
        p = {name: self.p(name, "retrieve") for name in self.systems if name != "retrieve"}
        lines = [f"| nDCG@10 | queries | {' | '.join(self.systems)} |"]
        lines.append("|---" * (len(self.systems) + 2) + "|")
        for collection, row in self.rows().items():
            count = len(self.values[collection]["retrieve"]) if collection in self.values else ""
            cells = [
                f"{value:.2f}{'*' if p.get(name, {}).get(collection, 1.0) < 0.05 else ''}"
                for name, value in row.items()
            ]
            lines.append(f"| {collection} | {count} | {' | '.join(cells)} |")
        return lines

    def record(self) -> dict[str, Any]:
        return {
            "queries": {name: len(values["retrieve"]) for name, values in self.values.items()},
            NDCG: self.rows(),
            "p against retrieve, Holm": {
                name: self.p(name, "retrieve") for name in self.systems if name != "retrieve"
            },
        }


def draw(rows: Mapping[str, Mapping[str, float]], times: Mapping[str, Any], path: Path) -> None:
    """Mean nDCG@10 over milliseconds per query, 100 candidates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in rows["mean"].keys() & times.keys():
        x, y = times[name][100]["milliseconds"]["median"], rows["mean"][name]
        axes.plot(x, y, "o")
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4))
    axes.axhline(rows["mean"]["retrieve"], linestyle=":", color="grey", label="retrieve")
    axes.set(xscale="log", xlabel="ms per query, 100 candidates, 2 cores", ylabel="mean nDCG@10")
    axes.legend()
    figure.savefig(path)


def timed(rerankers: Mapping[str, BaseReranker], task: Task) -> list[Round]:
    encoder = Encoder.from_pretrained("e2rank-minilm")
    prompt = ListwiseReranker(encoder, feedback=False, stored_vectors="trust")
    all_of_them = {PROMPT: prompt, **rerankers}
    one_round(all_of_them, task.queries[0], task.candidates[0])  # caches
    pairs = zip(task.queries, task.candidates, strict=True)
    return [one_round(all_of_them, query, hits) for query, hits in pairs]


def write_into(page: Path, lines: Sequence[str]) -> None:
    """Between the page's two marks, in place of what is there."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN!r} and {END!r} to write between")
    text = "\n".join([before + begin, "", *lines, "", end + after])
    page.write_text(text, encoding="utf-8")


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
    parser.add_argument("--queries", type=int, default=100, help="of each collection")
    arguments = parser.parse_intermixed_args()
    base = Encoder.from_pretrained("minilm")
    cache = arguments.cache and arguments.cache / f"{base.fingerprint}.npz"
    known = TextVectors(base.dim, cache=cache)
    dev = [read_task(arguments.data, name, "dev", base, known) for name in DEV]
    documents, beta = tuned_rocchio(dev)
    rocchio = RocchioReranker(base, feedback_documents=documents, beta=beta, stored_vectors="trust")
    folders = {"e2rank": "e2rank-minilm", **dict(arguments.models)}
    rerankers: dict[str, BaseReranker] = {
        "rocchio": rocchio,
        **{name: load_reranker(folder, stored_vectors="trust") for name, folder in folders.items()},
    }
    tasks = [read_task(arguments.data, name, "test", base, known) for name in COLLECTIONS]
    rounds = timed(rerankers, tasks[0].first(TIMED_QUERIES))
    times = summary(rounds)
    kinds = {name: system_of(folder) for name, folder in folders.items()}
    others = [PROMPT, *(name for name, kind in kinds.items() if kind == "resrank")]
    ratio = {name: ratios(rounds, name) for name in others}
    told = [*times_table(times), "", *ratios_table(ratio)]
    print("\n".join(told), flush=True)
    pairs = [name for name, kind in kinds.items() if kind == "rankt5"]
    for name in pairs:
        rerankers[name].close()
        rerankers[name] = load_reranker(folders[name], dtype="bfloat16")
    systems: dict[str, Rerank] = {"retrieve": by_cosine}
    for name, reranker in rerankers.items():
        systems[name] = partial(reranked, reranker)
    light = {name: rerank for name, rerank in systems.items() if name not in pairs}
    on_all = Quality(tasks, light)
    on_few = Quality([task.first(arguments.queries) for task in tasks], systems)
    record = {
        "machine": machine(),
        "models": folders,
        "rocchio": {"documents": documents, "beta": beta},
        "all queries": on_all.record(),
        f"first {arguments.queries} queries": on_few.record(),
        "p between cross-encoders, Holm": {
            f"{one} / {other}": on_few.p(one, other) for one, other in combinations(pairs, 2)
        },
        "times": times,
        "ratios, 100 candidates": ratio,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    lines = ["All queries:", "", *on_all.markdown(), ""]
    lines += [f"The first {arguments.queries} queries:", "", *on_few.markdown(), ""]
    write_into(PAGE, [*lines, "One query at a time:", "", *told])
    draw(on_few.rows(), times, PICTURE)


if __name__ == "__main__":
    main()
