"""What a listwise adapter is worth: a table over collections, with baselines and significance.

    python benchmarks/adapter_table.py DATA e2rank-minilm --query-adapter FOLDER [--cache FOLDER]

DATA holds BEIR folders. Every system ranks the same 100 candidates (the base's own retrieval; for
MS MARCO the BM25 runs of TREC DL 2019 and 2020, with NIST's whole qrels): the plain cosine, Rocchio
feedback, an adapter trained on the same data without documents in its prompts, and the adapter as
its folder says. Rocchio's two numbers and the query adapter's blend are tuned here, on the dev
splits pooled. p-values: paired randomisation test against the plain cosine, with Holm's correction
over the collections. Then the same prompts in other orders.

Writes benchmarks/results/adapter_table.json and prints markdown.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from machine import machine

from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.report import Experiment
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import score_by_vector
from e2rank_rag.training.mining import nearest
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Document, Embeddings, Hit

RESULTS = Path(__file__).parent / "results" / "adapter_table.json"
NDCG = "nDCG@10"
CANDIDATES = 100
MSMARCO = "msmarco_dl19_dl20_pool"

UNSEEN_COLLECTIONS = (
    "cranfield",
    "medlars",
    "cisi",
    "nfcorpus",
    "dl19+dl20",
    "liveqa_med",
    "squad2_dev",
)
UNSEEN_SPLITS = ("scifact", "bioasq_snippets")
OTHERS = ("medquad", "squadshifts_new_wiki", "wikiqa", "multihop_small", "nq_qed_dev")
DEV = ("nfcorpus", "wikiqa", "bioasq_snippets", "squadshifts_new_wiki", "medquad")

ROCCHIO = [(count, beta) for count in (1, 2, 3, 5, 10) for beta in (0.1, 0.2, 0.4, 0.6, 0.8)]
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHUFFLES = 5


@dataclass(frozen=True)
class Task:
    """Queries with their candidates, best first by the plain cosine, and their vectors."""

    name: str
    queries: list[str]
    asked: Embeddings
    candidates: list[list[Hit]]
    ids: list[str]
    qrels: Mapping[str, Mapping[str, int]]

    def ndcg(self, vectors: Embeddings) -> dict[str, float]:
        """query id -> nDCG@10 x 100 of the candidates in the order of their cosine."""
        rankings = {
            id: score_by_vector(hits, vector)
            for id, hits, vector in zip(self.ids, self.candidates, vectors, strict=True)
        }
        values = evaluate_by_query(run_from_rankings(rankings), self.qrels, [NDCG])
        return {id: 100 * each[NDCG] for id, each in values.items()}

    def texts(self, arrange: Callable[[list[str]], list[str]] | None = None) -> list[list[str]]:
        lists = [[hit.document.text for hit in hits] for hits in self.candidates]
        return lists if arrange is None else [arrange(texts) for texts in lists]

    def rocchio(self, count: int, beta: float) -> Embeddings:
        means = [np.mean([h.embedding for h in hits[:count]], axis=0) for hits in self.candidates]
        return self.asked + beta * np.stack(means)


def read_task(data: Path, name: str, split: str, base: Encoder, known: TextVectors) -> Task:
    if name == "dl19+dl20":
        parts = [_msmarco(data, year, base, known) for year in ("dl19", "dl20")]
        return Task(
            name,
            [query for part in parts for query in part.queries],
            np.concatenate([part.asked for part in parts]),
            [hits for part in parts for hits in part.candidates],
            [id for part in parts for id in part.ids],
            {id: grades for part in parts for id, grades in part.qrels.items()},
        )
    return _task(name, Experiment.read(data / name, split), base, known)


def _msmarco(data: Path, year: str, base: Encoder, known: TextVectors) -> Task:
    folder = data / MSMARCO
    run, qrels = folder / "runs" / f"{year}.bm25.trec", folder / "qrels_full" / f"{year}.tsv"
    return _task(year, Experiment.read(folder, year, run=run, qrels=qrels), base, known)


def _task(name: str, experiment: Experiment, base: Encoder, known: TextVectors) -> Task:
    documents = list(experiment.documents())
    documents = [document for document in documents if document.text.strip()]
    known.encode([document.text for document in documents], base.encode_documents)
    vectors = known.of([document.text for document in documents])
    ids, queries = list(experiment.queries), list(experiment.queries.values())
    asked = base.encode_queries(queries)
    if experiment.candidates is None:
        places = nearest(asked, vectors, CANDIDATES)
    else:
        rows = {document.id: row for row, document in enumerate(documents)}
        places = [[rows[name] for name in experiment.candidates[id]] for id in ids]
    candidates = [
        score_by_vector([Hit(documents[row], 0.0, vectors[row]) for row in found], vector)
        for found, vector in zip(places, asked, strict=True)
    ]
    return Task(name, queries, asked, _light(candidates), ids, experiment.qrels)


def _light(candidates: list[list[Hit]]) -> list[list[Hit]]:
    """Texts without their metadata, of which some collections have much."""
    return [
        [Hit(Document(h.document.id, h.document.text), h.score, h.embedding) for h in hits]
        for hits in candidates
    ]


def blended(task: Task, listwise: Embeddings, weight: float) -> Embeddings:
    return weight * task.asked + (1 - weight) * listwise


def tuned_rocchio(dev: Sequence[Task]) -> tuple[int, float]:
    return max(ROCCHIO, key=lambda each: fmean(_mean(t.ndcg(t.rocchio(*each))) for t in dev))


def tuned_weight(dev: Sequence[Task], vectors: Sequence[Embeddings]) -> float:
    def dev_mean(weight: float) -> float:
        pairs = zip(dev, vectors, strict=True)
        return fmean(_mean(task.ndcg(blended(task, v, weight))) for task, v in pairs)

    return max(WEIGHTS, key=dev_mean)


def orders(task: Task, encoder: Encoder) -> dict[str, float]:
    """Means with the prompt's documents in other orders; `all` also changes which ones they are."""
    depth = encoder.recipe.listwise.depth

    def mean(arrange: Callable[[list[str]], list[str]]) -> float:
        return _mean(
            task.ndcg(encoder.encode_listwise(task.queries, task.texts(arrange)).embeddings)
        )

    def shuffled(count: int, seed: int) -> Callable[[list[str]], list[str]]:
        draw = random.Random(seed)
        return lambda texts: draw.sample(texts[:count], len(texts[:count])) + texts[count:]

    return {
        **{f"shuffled {seed}": mean(shuffled(depth, seed)) for seed in range(SHUFFLES)},
        "reversed": mean(lambda texts: texts[:depth][::-1]),
        "all 100 shuffled": mean(shuffled(CANDIDATES, 0)),
    }


def _mean(values: Mapping[str, float]) -> float:
    return fmean(values.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--query-adapter", type=Path, help="trained with prompt.depths=[0]")
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents")
    parser.add_argument("--orders", action="store_true", help="prompts in other orders too")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    base, model = Encoder.from_pretrained(arguments.base), Encoder.from_pretrained(arguments.model)
    cache = arguments.cache and arguments.cache / f"{base.fingerprint}.npz"
    known = TextVectors(base.dim, cache=cache)
    query_only = arguments.query_adapter and Encoder.from_pretrained(arguments.query_adapter)

    def without_documents(task: Task) -> Embeddings:
        nothing: list[list[str]] = [[] for _ in task.queries]
        return query_only.encode_listwise(
            task.queries, nothing, depth=0, query_weight=0.0
        ).embeddings

    dev = [read_task(arguments.data, name, "dev", base, known) for name in DEV]
    count, beta = tuned_rocchio(dev)
    systems: dict[str, Callable[[Task], Embeddings]] = {
        "retrieve": lambda task: task.asked,
        "rocchio": lambda task: task.rocchio(count, beta),
    }
    settings: dict[str, object] = {"rocchio": {"documents": count, "beta": beta}}
    if query_only is not None:
        weight = tuned_weight(dev, [without_documents(task) for task in dev])
        settings["query adapter"] = {"query_weight": weight}
        systems["query adapter"] = lambda task: blended(task, without_documents(task), weight)
    systems["listwise"] = lambda task: model.encode_listwise(task.queries, task.texts()).embeddings
    print(f"tuned on dev: {settings}")

    rows: dict[str, dict[str, float]] = {}
    p_values: dict[str, float] = {}
    moved: dict[str, dict[str, float]] = {}
    for task in dev:
        rows[f"{task.name} dev"] = {
            name: _mean(task.ndcg(of(task))) for name, of in systems.items()
        }
    print(f"| nDCG@10 | queries | {' | '.join(systems)} | change | p |", flush=True)
    print(f"|---|---|{'---|' * (len(systems) + 2)}")
    for name in (*UNSEEN_COLLECTIONS, *UNSEEN_SPLITS, *OTHERS):
        task = read_task(arguments.data, name, "test", base, known)
        values = {system: task.ndcg(of(task)) for system, of in systems.items()}
        rows[name] = {"queries": len(task.ids)} | {s: _mean(v) for s, v in values.items()}
        p_values[name] = paired_randomization_test(values["listwise"], values["retrieve"])
        if arguments.orders and name in UNSEEN_COLLECTIONS + UNSEEN_SPLITS:
            moved[name] = orders(task, model)
        change = rows[name]["listwise"] - rows[name]["retrieve"]
        figures = " | ".join(f"{rows[name][system]:.2f}" for system in systems)
        print(
            f"| {name} | {len(task.ids)} | {figures} | {change:+.2f} | {p_values[name]:.4f} |",
            flush=True,
        )
    adjusted = holm_correction(
        {name: p_values[name] for name in UNSEEN_COLLECTIONS + UNSEEN_SPLITS}
    )
    for title, names in (
        ("unseen collections", UNSEEN_COLLECTIONS),
        ("unseen splits", UNSEEN_SPLITS),
        ("others", OTHERS),
    ):
        means = {system: fmean(rows[name][system] for name in names) for system in systems}
        rows[f"mean of {title}"] = means
        figures = " | ".join(f"{value:.2f}" for value in means.values())
        print(f"| **{title}** | | {figures} | {means['listwise'] - means['retrieve']:+.2f} | |")
    print("Holm:", {name: round(p, 4) for name, p in adjusted.items()})
    for order in next(iter(moved.values()), {}):
        shift = fmean(moved[name][order] - rows[name]["listwise"] for name in UNSEEN_COLLECTIONS)
        print(f"order: {order}: {shift:+.2f} on the mean of the unseen collections")
    record = {
        "model": arguments.model,
        "machine": machine(),
        "tuned on dev": settings,
        NDCG: rows,
        "p": p_values,
        "p, Holm": adjusted,
        "orders": moved,
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
