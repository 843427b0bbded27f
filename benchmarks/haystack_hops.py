"""What the hops of a Haystack pipeline cost: three stock components against E2RankRetriever.

    python benchmarks/haystack_hops.py

Text embedder, QdrantEmbeddingRetriever(return_embedding=True) and E2RankRanker in one pipeline,
E2RankRetriever in another: the same 100 candidates, the same 10 documents (checked), Qdrant in
memory, SciFact texts and queries, one query at a time on the CPU. 384 dimensions are MiniLM's; for
1024 a BERT of two layers with random weights stands in, since only the width matters to a hop.
Each round times both pipelines on one query, five times in turns, and keeps the best of each;
ratios are taken round by round. Writes benchmarks/results/haystack_hops.json.
"""

from __future__ import annotations

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"

import argparse
import json
import logging
import tempfile
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from haystack import Document, Pipeline
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from transformers import AutoTokenizer, BertConfig, BertModel

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.bench.pairs import seconds, spread
from e2rank_rag.data import shipped_collection
from e2rank_rag.documents import read_documents
from e2rank_rag.models.shipped import minilm_folder

RESULTS = Path(__file__).parent / "results" / "haystack_hops.json"
CANDIDATES = 100
TOP_K = 10
REPEATS = 5


def wide_model(folder: Path) -> Path:
    """1024 dimensions, random weights, MiniLM's tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=2, num_attention_heads=16, intermediate_size=2048
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return folder


def stock(store: QdrantDocumentStore, model: dict[str, Any]) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", E2RankTextEmbedder(**model))
    pipeline.add_component(
        "retriever", QdrantEmbeddingRetriever(store, top_k=CANDIDATES, return_embedding=True)
    )
    pipeline.add_component("ranker", E2RankRanker(**model, top_k=TOP_K))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def fused(store: QdrantDocumentStore, model: dict[str, Any]) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component(
        "ranker", E2RankRetriever(store, **model, top_k=TOP_K, retrieve_k=CANDIDATES)
    )
    return pipeline


def rounds(
    model: dict[str, Any], dim: int, documents: list[Document], queries: list[str]
) -> list[dict[str, float]]:
    store = QdrantDocumentStore(":memory:", embedding_dim=dim, progress_bar=False)
    store.write_documents(E2RankDocumentEmbedder(**model).run(documents)["documents"])
    pipelines = {"stock": stock(store, model), "fused": fused(store, model)}

    def ask(name: str, query: str) -> list[str]:
        inputs: dict[str, Any] = {"ranker": {"query": query}}
        if name == "stock":
            inputs["embedder"] = {"text": query}
        return [d.id for d in pipelines[name].run(inputs)["ranker"]["documents"]]

    timed = []
    for query in queries:
        # Both are warm, have made their probe, and agree.
        if ask("stock", query) != ask("fused", query):
            raise AssertionError(f"the two pipelines disagree on {query!r}")
        turns = [
            {name: seconds(partial(ask, name, query)) for name in pipelines} for _ in range(REPEATS)
        ]
        timed.append({name: min(turn[name] for turn in turns) for name in pipelines})
    store.close()
    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--documents", type=int, default=1000)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    collection = shipped_collection("scifact")
    documents = [
        Document(id=d.id, content=d.text)
        for d in islice(read_documents(collection.corpus_path), arguments.documents)
    ]
    queries = list(collection.queries("test").values())[: arguments.queries]
    result: dict[str, Any] = {
        "machine": {**this_machine(), "haystack-ai": version("haystack-ai")},
        "queries": len(queries),
        "documents": len(documents),
        "candidates": CANDIDATES,
        "top_k": TOP_K,
    }
    with tempfile.TemporaryDirectory() as folder:
        wide = {"pooling": "mean", "prompts": "plain", "max_length": 64}
        models: dict[int, dict[str, Any]] = {
            384: {"model": "minilm"},
            1024: {"model": str(wide_model(Path(folder))), "encoder_kwargs": wide},
        }
        for dim, model in models.items():
            timed = rounds(model, dim, documents, queries)
            result[f"{dim} dimensions"] = {
                "stock ms": spread([1000 * r["stock"] for r in timed]),
                "fused ms": spread([1000 * r["fused"] for r in timed]),
                "ms saved": spread([1000 * (r["stock"] - r["fused"]) for r in timed]),
                "stock / fused": spread([r["stock"] / r["fused"] for r in timed]),
            }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
