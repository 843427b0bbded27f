"""What a model reranks on top of its own retrieval: nDCG@10 of both, for models with vectors of
their own.

    python benchmarks/own_retrieval.py DATA NAME=FOLDER [...] [--on NAME ...] [--dtype bfloat16]

DATA holds BEIR folders; each NAME=FOLDER is a model that `load_reranker` opens and that reads
vectors, such as a ResRank or an E2Rank that was trained jointly. Its encoder embeds the
documents of the test splits and finds 100 candidates a query (for MS MARCO they are those of BM25),
which `retrieve` orders by the cosine and NAME reranks. systems_table.py has models that share one
retrieval. p: paired randomisation test, with Holm's correction over the collections.

Writes NAME's part of benchmarks/results/own_retrieval.json, and prints it as markdown.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from systems_table import COLLECTIONS, Record, named, quality, quality_table, reranked, searched
from tasks import DENSE, Reader

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.rerankers import load_reranker

RESULTS = Path(__file__).parent / "results" / "own_retrieval.json"


def measured(
    data: Path, name: str, folder: str, collections: list[str], dtype: str, cache: Path | None
) -> Record:
    reranker = load_reranker(folder, stored_vectors="trust", dtype=dtype)
    if reranker.vectors is None:
        raise ValueError(f"{folder} reads no vectors: it reranks any model's retrieval")
    with reranker:
        reader = Reader.of(data, reranker.vectors.encoder, cache)
        tasks = [reader.read(each, "test") for each in collections]
        systems = {"retrieve": partial(searched, DENSE), name: partial(reranked, reranker)}
        return {"machine": this_machine(), "dtype": dtype, **quality(tasks, systems, [])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", type=named, metavar="NAME=FOLDER")
    parser.add_argument("--on", nargs="+", default=list(COLLECTIONS), metavar="NAME")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents")
    arguments = parser.parse_intermixed_args()
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, folder in arguments.models:
        record[name] = measured(
            arguments.data, name, folder, arguments.on, arguments.dtype, arguments.cache
        )
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")
        print("\n".join(quality_table(record[name])))


if __name__ == "__main__":
    main()
