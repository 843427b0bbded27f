"""Which system when: nDCG@10, tokens read and milliseconds of all systems on the same candidates.

    python benchmarks/systems_table.py DATA [NAME=FOLDER ...] [--cache FOLDER] [--queries 100]

DATA holds BEIR folders; each NAME=FOLDER is a model that `load_reranker` opens, of any system.
Every system ranks the same 100 candidates: all-MiniLM-L6-v2's own, for MS MARCO the BM25 runs of
TREC DL 2019 and 2020 with NIST's whole qrels. `retrieve` is the plain cosine, `rocchio` is tuned on
the dev splits pooled; `evidence` is feedback and the candidates' words without a prompt, `untrained
prompt` is e2rank without its listwise adapter. Three rows rank other candidates: `RRF`, `DBSF` and
`z-sum` are hybrid searches as hybrid_table.py has them.

A cross-encoder reads 100 texts a query: it is measured, in bfloat16, on the first --queries of each
collection, and all systems on the same ones; those that read vectors on all queries too. p: paired
randomisation test against `retrieve`, with Holm's correction over the collections of a system; of
two cross-encoders also between them.

Milliseconds and tokens are of single SciFact queries over the first 10, 20, 50 and 100 candidates,
in float32, as systems_latency.py takes them, there for the prompt of e2rank without feedback too.

Writes benchmarks/results/systems_table.json, docs/systems.svg, and the tables in docs/systems.md.
Times want a machine that does nothing else: --times-only takes them again. --all-queries-only
measures again what is measured on all queries, which no cross-encoder is, and keeps the rest.
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

from pages import write_into
from systems_latency import one_round, ratios, ratios_table, summary, times_table
from tasks import DBSF, DENSE, DEV, NDCG, RRF, ZSUM, Reader, Task, tuned_rocchio

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.folders import system_of
from e2rank_rag.rerankers import (
    BaseReranker,
    EvidenceReranker,
    ListwiseReranker,
    RocchioReranker,
    load_reranker,
)
from e2rank_rag.types import Hit

RESULTS = Path(__file__).parent / "results" / "systems_table.json"
PAGE = Path(__file__).parents[1] / "docs" / "systems.md"
PICTURE = PAGE.with_suffix(".svg")
COLLECTIONS = ("scifact", "cranfield", "medlars", "nfcorpus", "dl19+dl20", "bioasq_snippets")
TIMED_QUERIES = 20
PROMPT = "e2rank, prompt alone"
ALL, FEW = "all queries", "first queries"

Rerank = Callable[[Task], list[list[Hit]]]
Record = dict[str, Any]


def reranked(reranker: BaseReranker, task: Task) -> list[list[Hit]]:
    return reranker.rerank_batch(task.queries, task.candidates)


def searched(name: str, task: Task) -> list[list[Hit]]:
    return task.hits(task.rankings[name])


def quality(tasks: Sequence[Task], systems: Mapping[str, Rerank], pairs: Sequence[str]) -> Record:
    """nDCG@10 x 100 by collection and system, and p values of the systems' differences."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for task in tasks:
        values[task.name] = {name: task.values_of(rerank(task)) for name, rerank in systems.items()}
        print(task.name, {n: round(fmean(v.values()), 2) for n, v in values[task.name].items()})
    rows = {
        collection: {name: fmean(each.values()) for name, each in by_system.items()}
        for collection, by_system in values.items()
    }
    rows["mean"] = {name: fmean(row[name] for row in rows.values()) for name in systems}

    def p(one: str, other: str) -> dict[str, float]:
        return holm_correction(
            {
                collection: paired_randomization_test(by_system[one], by_system[other])
                for collection, by_system in values.items()
            }
        )

    return {
        "queries": {task.name: len(task.ids) for task in tasks},
        NDCG: rows,
        "p against retrieve, Holm": {name: p(name, "retrieve") for name in [*systems][1:]},
        "p between cross-encoders, Holm": {
            f"{one} / {other}": p(one, other) for one, other in combinations(pairs, 2)
        },
    }


def quality_table(record: Record) -> list[str]:
    """Markdown. A star: another figure than `retrieve` has, at p < 0.05."""
    p = record["p against retrieve, Holm"]
    systems = ["retrieve", *p]
    lines = [f"| nDCG@10 | queries | {' | '.join(systems)} |", "|---" * (len(systems) + 2) + "|"]
    for collection, row in record[NDCG].items():
        stars = ["*" if p.get(n, {}).get(collection, 1.0) < 0.05 else "" for n in systems]
        cells = [f"{row[name]:.2f}{star}" for name, star in zip(systems, stars, strict=True)]
        count = record["queries"].get(collection, "")
        lines.append(f"| {collection} | {count} | {' | '.join(cells)} |")
    return lines


def draw(rows: Mapping[str, Mapping[str, float]], times: Record, path: Path) -> None:
    """Mean nDCG@10 over milliseconds per query, 100 candidates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, y in rows["mean"].items():
        if name in times:
            x = times[name]["100"]["milliseconds"]["median"]
            axes.plot(x, y, "o")
            axes.annotate(
                name, (x, y), textcoords="offset points", xytext=(-8, 0), ha="right", va="center"
            )
    axes.axhline(rows["mean"]["retrieve"], linestyle=":", color="grey", label="retrieve")
    axes.set(xscale="log", xlabel="ms per query, 100 candidates, 2 cores", ylabel="mean nDCG@10")
    axes.margins(x=0.3, y=0.1)
    axes.legend()
    figure.savefig(path)


def render(record: Record) -> None:
    """The page and the picture, of a record as it was read."""
    few = record[FEW]
    lines = ["All queries:", "", *quality_table(record[ALL]), ""]
    lines += [f"The first {max(few['queries'].values())} queries:", "", *quality_table(few), ""]
    lines += ["One query at a time:", "", *times_table(record["times"]), ""]
    lines += ratios_table(record["ratios, 100 candidates"])
    write_into(PAGE, lines, Path(__file__).name)
    draw(few[NDCG], record["times"], PICTURE)


def timed(rerankers: Mapping[str, BaseReranker], task: Task, over: Sequence[str]) -> Record:
    encoder = Encoder.from_pretrained("e2rank-minilm")
    prompt = ListwiseReranker(encoder, feedback=False, stored_vectors="trust")
    systems = {PROMPT: prompt, **rerankers}
    one_round(systems, task.queries[0], task.candidates[0])  # caches
    pairs = zip(task.queries, task.candidates, strict=True)
    rounds = [one_round(systems, query, hits) for query, hits in pairs]
    return {
        "times": summary(rounds),
        "ratios, 100 candidates": {name: ratios(rounds, name) for name in (PROMPT, *over)},
    }


def named(argument: str) -> tuple[str, str]:
    name, separator, folder = argument.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {argument!r}")
    return name, folder


def opened(folders: Mapping[str, str], rocchio: Record) -> dict[str, BaseReranker]:
    """Every reranker by its name; rocchio: documents and beta."""
    base = Encoder.from_pretrained("minilm")
    untrained = Encoder.from_pretrained("e2rank-minilm").without_adapter()
    return {
        "rocchio": RocchioReranker(
            base,
            feedback_documents=rocchio["documents"],
            beta=rocchio["beta"],
            stored_vectors="trust",
        ),
        "evidence": EvidenceReranker(base, stored_vectors="trust"),
        "untrained prompt": ListwiseReranker(untrained, stored_vectors="trust"),
        **{name: load_reranker(folder, stored_vectors="trust") for name, folder in folders.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="*", type=named, metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents")
    parser.add_argument("--queries", type=int, default=100, help="of each collection")
    parser.add_argument("--times-only", action="store_true", help="keep the quality that is there")
    parser.add_argument("--all-queries-only", action="store_true", help="keep times and the first")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = _arguments()
    reader = Reader.of(arguments.data, Encoder.from_pretrained("minilm"), arguments.cache)
    keep = arguments.times_only or arguments.all_queries_only
    record = json.loads(RESULTS.read_text()) if keep else {}
    record["machine"] = this_machine()
    if not keep:
        documents, beta = tuned_rocchio([reader.read(name, "dev") for name in DEV])
        record["rocchio"] = {"documents": documents, "beta": beta}
    folders = {"e2rank": "e2rank-minilm", **dict(arguments.models)}
    rerankers = opened(folders, record["rocchio"])
    kinds = {name: system_of(folder) for name, folder in folders.items()}
    if not arguments.all_queries_only:
        few = reader.read(COLLECTIONS[0], "test").first(TIMED_QUERIES)
        record |= timed(rerankers, few, [name for name, kind in kinds.items() if kind == "resrank"])
    if not arguments.times_only:
        pairs = [name for name, kind in kinds.items() if kind == "rankt5"]
        for name in pairs:
            rerankers[name].close()
            rerankers[name] = load_reranker(folders[name], dtype="bfloat16")
        searches = {"retrieve": DENSE, RRF: RRF, DBSF: DBSF, ZSUM: ZSUM}
        systems: dict[str, Rerank] = {n: partial(searched, of) for n, of in searches.items()}
        systems |= {name: partial(reranked, reranker) for name, reranker in rerankers.items()}
        light = {name: rerank for name, rerank in systems.items() if name not in pairs}
        tasks = [reader.read(name, "test") for name in COLLECTIONS]
        record[ALL] = quality(tasks, light, [])
        if not arguments.all_queries_only:
            tasks = [task.first(arguments.queries) for task in tasks]
            record[FEW] = quality(tasks, systems, pairs)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    render(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
