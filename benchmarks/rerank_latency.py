"""What one listwise reranking costs, against encoding the candidates, and by number of candidates.

    python benchmarks/rerank_latency.py

SciFact test queries with e2rank-minilm on the CPU, one at a time, candidates with stored vectors.
Each round times, in turn: encoding the 100 candidate documents, then reranking 100 and 1000, first
by the prompt alone, then with the model's feedback, which reads all texts, then with what words add
to the scores too, and last without the prompt (EvidenceReranker).
Ratios are taken round by round. Writes benchmarks/results/rerank_latency.json.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.bench.pairs import seconds, spread
from e2rank_rag.data import shipped_collection
from e2rank_rag.evidence import Evidence
from e2rank_rag.indexing import index_file
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import EvidenceReranker, ListwiseReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Hit

RESULTS = Path(__file__).parent / "results" / "rerank_latency.json"


def one_round(encoder: Encoder, query: str, found: list[Hit]) -> dict[str, float]:
    texts = [hit.document.text for hit in found[:100]]
    prompt = ListwiseReranker(encoder, feedback=False, evidence=False, stored_vectors="trust")
    feedback = ListwiseReranker(encoder, evidence=False, stored_vectors="trust")
    evidence = ListwiseReranker(encoder, evidence=Evidence(), stored_vectors="trust")
    promptless = EvidenceReranker(encoder, stored_vectors="trust")
    feedback.rerank(query, found)  # caches
    return {
        "encode 100 documents": seconds(lambda: encoder.encode_documents(texts)),
        "rerank 100": seconds(lambda: prompt.rerank(query, found[:100])),
        "rerank 1000": seconds(lambda: prompt.rerank(query, found)),
        "rerank 100 with feedback": seconds(lambda: feedback.rerank(query, found[:100])),
        "rerank 1000 with feedback": seconds(lambda: feedback.rerank(query, found)),
        "rerank 100 with evidence": seconds(lambda: evidence.rerank(query, found[:100])),
        "rerank 1000 with evidence": seconds(lambda: evidence.rerank(query, found)),
        "rerank 100 without a prompt": seconds(lambda: promptless.rerank(query, found[:100])),
        "rerank 1000 without a prompt": seconds(lambda: promptless.rerank(query, found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=20)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    collection = shipped_collection("scifact")
    encoder = Encoder.from_pretrained("e2rank-minilm", device="cpu")
    store = QdrantStore.open(":memory:", "scifact")
    index_file(collection.corpus_path, encoder, store, progress=True)
    rounds = []
    for query in list(collection.queries("test").values())[: arguments.queries]:
        found = store.search(encoder.encode_queries([query])[0], top_k=1000)
        rounds.append(one_round(encoder, query, found))
    result = {
        "machine": this_machine(),
        "queries": len(rounds),
        "seconds": {name: spread([r[name] for r in rounds]) for name in rounds[0]},
        **{
            f"{one} / {other}": spread([r[one] / r[other] for r in rounds])
            for one, other in (
                ("encode 100 documents", "rerank 100"),
                ("encode 100 documents", "rerank 100 with feedback"),
                ("rerank 1000", "rerank 100"),
                ("rerank 1000 with feedback", "rerank 100 with feedback"),
                ("rerank 100 with evidence", "rerank 100 with feedback"),
            )
        },
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
