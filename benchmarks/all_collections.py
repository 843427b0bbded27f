"""Retrieval, Rocchio and listwise reranking on every collection, with untrained prompts by default.

    python benchmarks/all_collections.py FOLDER_WITH_BEIR_FOLDERS

Runs what `e2rank evaluate` runs, on the test split of each collection (MS MARCO: the BM25 runs of
TREC DL 2019 and 2020 with NIST's whole qrels), and prints a markdown table. Writes
benchmarks/results/MODEL/COLLECTION.json; a collection that has its file already is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from e2rank_rag.evaluation.report import Experiment, run_experiment
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store import QdrantStore

RESULTS = Path(__file__).parent / "results"
COLLECTIONS = (
    "scifact",
    "nfcorpus",
    "cranfield",
    "cisi",
    "medlars",
    "bioasq_snippets",
    "liveqa_med",
    "medquad",
    "wikiqa",
    "multihop_small",
    "squadshifts_new_wiki",
    "nq_qed_dev",
    "squad2_dev",
)
MSMARCO = "msmarco_dl19_dl20_pool"
METHODS = ("retrieve", "rocchio", "listwise")


def experiments(data: Path) -> dict[str, Experiment]:
    found = {}
    for split in ("dl19", "dl20"):
        found[f"{split} (BM25 run)"] = Experiment.read(
            data / MSMARCO,
            split,
            run=data / MSMARCO / "runs" / f"{split}.bm25.trec",
            qrels=data / MSMARCO / "qrels_full" / f"{split}.tsv",
        )
    found.update((name, Experiment.read(data / name, "test")) for name in COLLECTIONS)
    return found


def measured(name: str, experiment: Experiment, encoder: Encoder, model: str) -> dict[str, Any]:
    path = RESULTS / Path(model).name / f"{name.split()[0]}.json"
    if not path.is_file():
        store = QdrantStore.open(":memory:", experiment.name)
        results = run_experiment(experiment, encoder, store, METHODS, progress=True)
        store.close()
        experiment.write_json(path, results, model=model)
    systems: dict[str, Any] = json.loads(path.read_text())["systems"]
    return systems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="minilm")
    arguments = parser.parse_args()
    encoder = Encoder.from_pretrained(arguments.model)
    print(f"| nDCG@10 | queries | {' | '.join(METHODS)} |\n|---|---|{'---|' * len(METHODS)}")
    rows = []
    for name, experiment in experiments(arguments.data).items():
        systems = measured(name, experiment, encoder, arguments.model)
        rows.append([100 * systems[system]["nDCG@10"] for system in METHODS])
        figures = " | ".join(f"{value:.2f}" for value in rows[-1])
        print(f"| {name} | {len(experiment.queries)} | {figures} |", flush=True)
    means = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    print(f"| mean | | {' | '.join(f'{value:.2f}' for value in means)} |")


if __name__ == "__main__":
    main()
