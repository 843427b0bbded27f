"""What a listwise adapter is worth: a table over collections, with baselines and significance.

    python benchmarks/adapter_table.py DATA e2rank-minilm --query-adapter FOLDER [--cache FOLDER]

DATA holds BEIR folders. Every system ranks the same 100 candidates (the base's own retrieval; for
MS MARCO the BM25 runs of TREC DL 2019 and 2020, with NIST's whole qrels): `retrieve` the plain
cosine; `rocchio`; `feedback`, the model's own without any prompt; `listwise`, the model as its
folder says; `query adapter`, trained on the same data without documents in its prompts. Rocchio's
two numbers and the blend of the query adapter are tuned here, on the dev splits pooled. p: paired
randomisation test of `listwise` against `retrieve`, with Holm's correction over the collections
that training has not seen and the test splits of two that it has. Then prompts with their documents
in other orders. `--dev-only` prints what the weights of query and feedback bring on dev instead.

Writes benchmarks/results/adapter_table.json, with `--dev-only` adapter_dev.json, and prints
markdown.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from machine import machine

from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.report import Experiment
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test
from e2rank_rag.feedback import Scores, order
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import ListwiseReranker, score_by_vector
from e2rank_rag.training.mining import nearest
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Document, Embeddings, Hit

RESULTS = Path(__file__).parent / "results" / "adapter_table.json"
DEV_RESULTS = RESULTS.with_name("adapter_dev.json")
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
UNSEEN_DEV = ("nfcorpus", "wikiqa")
DEV = ("nfcorpus", "wikiqa", "bioasq_snippets", "squadshifts_new_wiki", "medquad")

ROCCHIO = [(count, beta) for count in (1, 2, 3, 5, 10) for beta in (0.1, 0.2, 0.4, 0.6, 0.8)]
QUERY_WEIGHTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
FEEDBACK_WEIGHTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHUFFLES = 5

Arrange = Callable[[list[str]], list[str]]


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
        pairs = zip(self.candidates, vectors, strict=True)
        return self.ndcg_of([score_by_vector(hits, vector) for hits, vector in pairs])

    def ndcg_of(self, rankings: Sequence[list[Hit]]) -> dict[str, float]:
        """query id -> nDCG@10 x 100 of one ranking per query."""
        run = run_from_rankings(dict(zip(self.ids, rankings, strict=True)))
        values = evaluate_by_query(run, self.qrels, [NDCG])
        return {id: 100 * each[NDCG] for id, each in values.items()}

    def first(self, count: int) -> Task:
        """The same with so many queries at most."""
        ids = self.ids[:count]
        return Task(
            self.name,
            self.queries[:count],
            self.asked[:count],
            self.candidates[:count],
            ids,
            {id: self.qrels[id] for id in ids},
        )

    def rocchio(self, count: int, beta: float) -> Embeddings:
        means = [np.mean([h.embedding for h in hits[:count]], axis=0) for hits in self.candidates]
        return self.asked + beta * np.stack(means)


def read_task(data: Path, name: str, split: str, base: Encoder, known: TextVectors) -> Task:
    if name == "dl19+dl20":
        return _merged(name, [_msmarco(data, year, base, known) for year in ("dl19", "dl20")])
    # Nothing is trained on wikiqa, and its dev split is small.
    splits = ("dev", "train") if (name, split) == ("wikiqa", "dev") else (split,)
    parts = [_task(name, Experiment.read(data / name, each), base, known) for each in splits]
    return _merged(name, parts)


def _merged(name: str, parts: Sequence[Task]) -> Task:
    return Task(
        name,
        [query for part in parts for query in part.queries],
        np.concatenate([part.asked for part in parts]),
        [hits for part in parts for hits in part.candidates],
        [id for part in parts for id in part.ids],
        {id: grades for part in parts for id, grades in part.qrels.items()},
    )


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


def fed_back(task: Task, encoder: Encoder) -> tuple[list[Scores], Embeddings]:
    """Per query the evidence of each candidate, and the candidates' mean vector."""
    feedback = encoder.feedback
    assert feedback is not None
    evidence, means = [], []
    for query, hits in zip(task.queries, task.candidates, strict=True):
        texts = [hit.document.text for hit in hits]
        scores = feedback.evidence(query, texts, np.array([hit.score for hit in hits]))
        evidence.append(scores)
        means.append(feedback.mean(np.stack([hit.embedding for hit in hits]), scores))
    return evidence, np.stack(means)


@dataclass(frozen=True)
class Listwise:
    """Listwise vectors of a task, their prompts' documents in an order of choice, and feedback."""

    task: Task
    vectors: Embeddings
    means: Embeddings

    @classmethod
    def of(cls, task: Task, encoder: Encoder, arrange: Arrange | None = None) -> Listwise:
        """As `ListwiseReranker` has them, but for `arrange`, which is given the shown texts."""
        evidence, means = fed_back(task, encoder)
        shown = []
        for hits, scores in zip(task.candidates, evidence, strict=True):
            places = order(scores)[: encoder.recipe.listwise.depth]
            best = [hits[place].document.text for place in places]
            shown.append(best if arrange is None else arrange(best))
        vectors = encoder.encode_listwise(task.queries, shown, query_weight=0.0).embeddings
        return cls(task, vectors, means)

    def blended(self, query_weight: float, feedback_weight: float) -> Embeddings:
        vectors = query_weight * self.task.asked + (1 - query_weight) * self.vectors
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors + feedback_weight * self.means


def tuned_rocchio(dev: Sequence[Task]) -> tuple[int, float]:
    return max(ROCCHIO, key=lambda each: fmean(_mean(t.ndcg(t.rocchio(*each))) for t in dev))


def tuned_weight(dev: Sequence[Task], vectors: Sequence[Embeddings]) -> float:
    def dev_mean(weight: float) -> float:
        pairs = zip(dev, vectors, strict=True)
        return fmean(_mean(t.ndcg(weight * t.asked + (1 - weight) * v)) for t, v in pairs)

    return max(WEIGHTS, key=dev_mean)


def grid(dev: Sequence[Listwise]) -> dict[str, dict[str, float]]:
    """Dev means by collection for every pair of weights of query and feedback."""
    return {
        f"query_weight {query}, feedback.weight {feedback}": {
            each.task.name: _mean(each.task.ndcg(each.blended(query, feedback))) for each in dev
        }
        for query in QUERY_WEIGHTS
        for feedback in FEEDBACK_WEIGHTS
    }


def moved(task: Task, encoder: Encoder) -> dict[str, float]:
    """nDCG@10 with the documents of the prompt in other orders; at most 500 queries of a task."""
    task = task.first(500)

    def mean(arrange: Arrange | None) -> float:
        return _mean(task.ndcg(ranked(Listwise.of(task, encoder, arrange), encoder)))

    def shuffled(seed: int) -> Arrange:
        draw = random.Random(seed)
        return lambda texts: draw.sample(texts, len(texts))

    return {
        "as it is": mean(None),
        **{f"shuffled {seed}": mean(shuffled(seed)) for seed in range(SHUFFLES)},
        "reversed": mean(lambda texts: texts[::-1]),
        "100 candidates shuffled": _shuffled_candidates(task, encoder),
    }


def _shuffled_candidates(task: Task, encoder: Encoder) -> float:
    draw = random.Random(0)
    lists = [draw.sample(hits, len(hits)) for hits in task.candidates]
    return _mean(replace(task, candidates=lists).ndcg(reranked(task, encoder, lists)))


def reranked(task: Task, encoder: Encoder, candidates: list[list[Hit]]) -> Embeddings:
    """The vectors that the product ranks by."""
    reranker = ListwiseReranker(encoder, stored_vectors="trust")
    vectors = reranker.rerank_batch(task.queries, candidates).vectors
    assert vectors is not None
    return vectors


def ranked(listwise: Listwise, encoder: Encoder) -> Embeddings:
    assert encoder.feedback is not None
    return listwise.blended(encoder.recipe.query_weight, encoder.feedback.weight)


def _mean(values: Mapping[str, float]) -> float:
    return fmean(values.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--query-adapter", type=Path, help="trained with prompt.depths=[0]")
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents")
    parser.add_argument("--dev-only", action="store_true", help="the grid of weights on dev")
    parser.add_argument("--unseen-only", action="store_true", help="no other collections, orders")
    parser.add_argument("--output", type=Path, help="in place of the file in benchmarks/results")
    arguments = parser.parse_args()
    base, model = Encoder.from_pretrained(arguments.base), Encoder.from_pretrained(arguments.model)
    cache = arguments.cache and arguments.cache / f"{base.fingerprint}.npz"
    known = TextVectors(base.dim, cache=cache)

    def read(name: str, split: str) -> Task:
        return read_task(arguments.data, name, split, base, known)

    dev = [read(name, "dev") for name in DEV]
    record: dict[str, Any] = {"model": arguments.model, "machine": machine()}
    if arguments.dev_only:
        record["dev"] = grid([Listwise.of(task, model) for task in dev])
        for setting, by_collection in record["dev"].items():
            figures = " ".join(f"{value:.2f}" for value in by_collection.values())
            unseen = fmean(by_collection[name] for name in UNSEEN_DEV)
            print(f"{setting}: {figures} | {fmean(by_collection.values()):.2f} | {unseen:.2f}")
    else:
        record |= table(arguments, dev, read, model)
    output = arguments.output or (DEV_RESULTS if arguments.dev_only else RESULTS)
    output.write_text(json.dumps(record, indent=2) + "\n")


def table(
    arguments: argparse.Namespace,
    dev: Sequence[Task],
    read: Callable[[str, str], Task],
    model: Encoder,
) -> dict[str, Any]:
    query_adapter = arguments.query_adapter and Encoder.from_pretrained(arguments.query_adapter)

    def without_documents(task: Task) -> Embeddings:
        nothing: list[list[str]] = [[] for _ in task.queries]
        encode = query_adapter.encode_listwise
        return encode(task.queries, nothing, depth=0, query_weight=0.0).embeddings

    def feedback_alone(task: Task) -> Embeddings:
        assert model.feedback is not None
        return task.asked + model.feedback.weight * fed_back(task, model)[1]

    count, beta = tuned_rocchio(dev)
    settings: dict[str, Any] = {"rocchio": {"documents": count, "beta": beta}}
    systems: dict[str, Callable[[Task], Embeddings]] = {
        "retrieve": lambda task: task.asked,
        "rocchio": lambda task: task.rocchio(count, beta),
        "feedback": feedback_alone,
        "listwise": lambda task: reranked(task, model, task.candidates),
    }
    if query_adapter is not None:
        weight = tuned_weight(dev, [without_documents(task) for task in dev])
        settings["query adapter"] = {"query_weight": weight}
        systems["query adapter"] = lambda task: (
            weight * task.asked + (1 - weight) * without_documents(task)
        )
    print(f"tuned on dev: {settings}")
    groups = {"unseen collections": UNSEEN_COLLECTIONS, "unseen splits": UNSEEN_SPLITS}
    if not arguments.unseen_only:
        groups["others"] = OTHERS
    rows: dict[str, dict[str, float]] = {}
    p: dict[str, float] = {}
    orders: dict[str, dict[str, float]] = {}
    print(f"| nDCG@10 | queries | {' | '.join(systems)} | change | p |", flush=True)
    print(f"|---|---|{'---|' * (len(systems) + 2)}")
    for name in [name for names in groups.values() for name in names]:
        task = read(name, "test")
        values = {system: task.ndcg(of(task)) for system, of in systems.items()}
        rows[name] = {"queries": len(task.ids), **{s: _mean(v) for s, v in values.items()}}
        p[name] = paired_randomization_test(values["listwise"], values["retrieve"])
        _print_row(name, rows[name], systems, f"{len(task.ids)}", f"{p[name]:.4f}")
        if name in UNSEEN_COLLECTIONS and not arguments.unseen_only:
            orders[name] = moved(task, model)
    for title, names in groups.items():
        rows[title] = {system: fmean(rows[name][system] for name in names) for system in systems}
        _print_row(f"**{title}**", rows[title], systems, "", "")
    adjusted = holm_correction({name: p[name] for name in UNSEEN_COLLECTIONS + UNSEEN_SPLITS})
    print("Holm:", {name: round(value, 4) for name, value in adjusted.items()})
    for way in next(iter(orders.values()), {}):
        shift = fmean(each[way] - each["as it is"] for each in orders.values())
        print(f"prompts {way}: {shift:+.2f} on the mean of the unseen collections")
    return {
        "tuned on dev": settings,
        NDCG: rows,
        "p": p,
        "p, Holm": adjusted,
        "orders": orders,
    }


def _print_row(
    name: str, row: Mapping[str, float], systems: Mapping[str, Any], queries: str, p: str
) -> None:
    figures = " | ".join(f"{row[system]:.2f}" for system in systems)
    change = row["listwise"] - row["retrieve"]
    print(f"| {name} | {queries} | {figures} | {change:+.2f} | {p} |", flush=True)


if __name__ == "__main__":
    main()
