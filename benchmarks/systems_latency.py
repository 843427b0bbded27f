"""What reranking costs in each system: milliseconds and tokens read, over 10 to 100 candidates.

    python benchmarks/systems_latency.py [--queries 20]

SciFact test queries on the CPU, one at a time, candidates with stored vectors, and the query's
vector remembered from the search, as it is in a pipeline; all systems are
all-MiniLM-L6-v2 inside: e2rank-minilm by its prompt alone and with feedback, a ResRank whose
reranker is MiniLM, a cross-encoder of MiniLM (its whole length of 512 tokens). Time does not depend
on what weights were trained to, so the last two are untrained. A round times every system over one
query; ratios are taken round by round. Writes benchmarks/results/systems_latency.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from machine import machine
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from e2rank_rag.data import shipped_collection
from e2rank_rag.indexing import index_file
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.minilm import minilm_folder
from e2rank_rag.models.residual import ResidualHead
from e2rank_rag.models.resrank import ResRank
from e2rank_rag.recipe import EncoderOf, ResidualLayout, ResRankRecipe
from e2rank_rag.rerankers import (
    BaseReranker,
    ListwiseReranker,
    ResidualReranker,
    VectorReranker,
    load_reranker,
)
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Hit

RESULTS = Path(__file__).parent / "results" / "systems_latency.json"
DEPTHS = (10, 20, 50, 100)

Measured = dict[str, dict[int, dict[str, float]]]
"""By system and number of candidates: seconds and tokens of one round."""


def one_round(rerankers: Mapping[str, BaseReranker], query: str, found: Sequence[Hit]) -> Measured:
    result: Measured = {}
    for name, reranker in rerankers.items():
        if isinstance(reranker, VectorReranker):
            reranker.encoder.encode_queries([query])
        for depth in DEPTHS:
            started = time.perf_counter()
            _, report = reranker.explain_batch([query], [found[:depth]])
            seconds = time.perf_counter() - started
            tokens = float(sum(prompt.tokens for prompt in report.prompts))
            result.setdefault(name, {})[depth] = {"seconds": seconds, "tokens": tokens}
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summary(rounds: Sequence[Measured]) -> dict[str, dict[int, dict[str, object]]]:
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


def ratios(rounds: Sequence[Measured]) -> dict[str, dict[str, dict[str, float]]]:
    """Of 100 candidates: time and tokens of one system over another's, round by round."""
    pairs = [
        ("resrank", "e2rank, prompt alone"),
        ("resrank", "e2rank"),
        ("cross-encoder", "resrank"),
        ("cross-encoder", "e2rank, prompt alone"),
        ("cross-encoder", "e2rank"),
    ]
    return {
        f"{one} / {other}": {
            part: spread([each[one][100][part] / each[other][100][part] for each in rounds])
            for part in ("seconds", "tokens")
        }
        for one, other in pairs
    }


def untrained_resrank() -> ResRank:
    encoder, reranker = Encoder.from_pretrained("minilm"), Encoder.from_pretrained("minilm")
    layout = ResidualLayout()
    recipe = ResRankRecipe(encoder=EncoderOf(base="minilm", digest=encoder.digest), layout=layout)
    return ResRank(encoder, reranker, ResidualHead(384, 384, layout), recipe, name="untrained")


def untrained_cross_encoder(folder: Path) -> BaseReranker:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return load_reranker(folder, system="rankt5", max_length=512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=20)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    collection = shipped_collection("scifact")
    encoder = Encoder.from_pretrained("e2rank-minilm", device="cpu")
    store = QdrantStore.open(":memory:", "scifact")
    index_file(collection.corpus_path, encoder, store, progress=True)
    with tempfile.TemporaryDirectory() as folder:
        rerankers: dict[str, BaseReranker] = {
            "e2rank, prompt alone": ListwiseReranker(
                encoder, feedback=False, stored_vectors="trust"
            ),
            "e2rank": ListwiseReranker(encoder, stored_vectors="trust"),
            "resrank": ResidualReranker(untrained_resrank(), stored_vectors="trust"),
            "cross-encoder": untrained_cross_encoder(Path(folder)),
        }
        queries = list(collection.queries("test").values())[: arguments.queries]
        found = store.search_batch(encoder.encode_queries(queries), top_k=max(DEPTHS))
        one_round(rerankers, queries[0], found[0])  # caches
        rounds = [
            one_round(rerankers, query, hits) for query, hits in zip(queries, found, strict=True)
        ]
    result = {
        "machine": machine(),
        "queries": len(rounds),
        "systems": summary(rounds),
        "ratios, 100 candidates": ratios(rounds),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
