"""ResRank as its abstract has it, and as this project trains it by default, over several seeds.

    python benchmarks/resrank_seeds.py DATA --default FOLDER... --abstract FOLDER...
        [--query-adapter FOLDER] [--cache FOLDER]

DATA holds BEIR folders. Each FOLDER is a ResRank that train_minilm.py made, one per seed. The
abstract adds what the reranker learned to the query's own vector, and begins at retrieval
(`layout.query_residual=query gates=[0.0,0.0]`); the default adds the mean of the documents too.

All rank the same candidates, the 100 nearest documents of all-MiniLM-L6-v2, for MS MARCO the BM25
runs of TREC DL 2019 and 2020. Beside them are what a user has without training: the plain cosine,
DBSF over dense and BM25 candidates, and `EvidenceReranker` over the dense ones; e2rank-minilm over
the dense ones; and with --query-adapter the same adapter trained without documents in its prompt.
p: paired randomisation of the default seed by seed against `retrieve`, the largest of all seeds.

Writes benchmarks/results/resrank_seeds.json and the table in docs/experiments.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from pages import write_into
from tasks import DBSF, DENSE, Reader, Task

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.evaluation.significance import paired_randomization_test
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import EvidenceReranker, ListwiseReranker, load_reranker

RESULTS = Path(__file__).parent / "results" / "resrank_seeds.json"
PAGE = Path(__file__).parents[1] / "docs" / "experiments.md"
COLLECTIONS = (
    "cranfield",
    "medlars",
    "cisi",
    "nfcorpus",
    "dl19+dl20",
    "scifact",
    "bioasq_snippets",
)
SEEN = ("scifact", "bioasq_snippets")
"""Trained on their `train` splits."""

Values = dict[str, float]


def measured(task: Task, folders: dict[str, Sequence[Path]], query_adapter: Path | None) -> dict:
    """row -> one value per query, of each seed."""
    base = Encoder.from_pretrained("minilm")
    rows: dict[str, list[Values]] = {
        "retrieve": [task.values(task.rankings[DENSE])],
        "hybrid (DBSF)": [task.values(task.rankings[DBSF])],
    }

    def add(name: str, reranker) -> None:  # noqa: ANN001
        with reranker:
            ranked = reranker.rerank_batch(task.queries, task.candidates)
        rows.setdefault(name, []).append(task.values_of(ranked))

    add("evidence, no prompt", EvidenceReranker(base, stored_vectors="trust"))
    for name, seeds in folders.items():
        for folder in seeds:
            add(name, load_reranker(folder, stored_vectors="trust"))
    if query_adapter is not None:
        reader = Encoder.from_pretrained(query_adapter)
        add(
            "e2rank without documents in the prompt",
            ListwiseReranker(reader, prompt_depth=0, stored_vectors="trust"),
        )
    add("e2rank-minilm", load_reranker("e2rank-minilm", stored_vectors="trust"))
    return rows


def table(record: dict) -> list[str]:
    names = [*record["nDCG@10"]]
    lines = [f"| nDCG@10 | queries | {' | '.join(record['rows'])} |"]
    lines.append("|---" * (len(record["rows"]) + 2) + "|")
    for name in names:
        cells = []
        for row, values in record["nDCG@10"][name].items():
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            p = record["p"].get(name, {}).get(row, 1.0)
            cells.append(f"{fmean(values):.2f}{'*' if p < 0.05 else ''}{spread}")
        lines.append(f"| {name} | {record['queries'].get(name, '')} | {' | '.join(cells)} |")
    return lines


def with_means(record: dict) -> None:
    """Adds the means over the unseen datasets and over those that were trained on."""
    figures = record["nDCG@10"]
    unseen = [name for name in COLLECTIONS if name not in SEEN]
    for title, names in (("mean of the first five", unseen), ("mean of the last two", SEEN)):
        figures[title] = {
            row: [fmean(each) for each in zip(*(figures[n][row] for n in names), strict=True)]
            for row in record["rows"]
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--default", type=Path, nargs="+", required=True)
    parser.add_argument("--abstract", type=Path, nargs="+", required=True)
    parser.add_argument("--query-adapter", type=Path)
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents")
    arguments = parser.parse_args()
    reader = Reader.of(arguments.data, Encoder.from_pretrained("minilm"), arguments.cache)
    folders = {
        "ResRank, the abstract": arguments.abstract,
        "ResRank, our default": arguments.default,
    }
    record: dict = {
        "machine": this_machine() | {"command": Path(__file__).name},
        "queries": {},
        "nDCG@10": {},
        "p": {},
    }
    for name in COLLECTIONS:
        task = reader.read(name, "test")
        rows = measured(task, folders, arguments.query_adapter)
        record["rows"] = [*rows]
        record["queries"][name] = len(task.ids)
        record["nDCG@10"][name] = {
            row: [fmean(seed.values()) for seed in seeds] for row, seeds in rows.items()
        }
        (plain,) = rows["retrieve"]
        record["p"][name] = {
            row: max(paired_randomization_test(seed, plain) for seed in seeds)
            for row, seeds in rows.items()
            if row != "retrieve"
        }
        print(
            name,
            {row: [round(v, 2) for v in each] for row, each in record["nDCG@10"][name].items()},
        )
    with_means(record)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    write_into(PAGE, table(record), Path(__file__).name)


if __name__ == "__main__":
    main()
