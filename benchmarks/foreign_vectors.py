"""How surely the probe notices another model's vectors in a joined list, and what it costs.

    python benchmarks/foreign_vectors.py

Lists: the SciFact abstracts nearest to each of 300 queries by all-MiniLM-L6-v2, in which some have
the vector that an orthogonal copy of the model makes: a foreign vector that no length or dimension
gives away. Each list is probed by a `CandidateVectors` that has compared nothing, and by one that
has compared three of the list's own vectors before.
Cost: processor time of reranking 100 candidates that carry their vectors, one query after another,
with `stored_vectors` "trust" and "check". Writes benchmarks/results/foreign_vectors.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.bench.pairs import spread
from e2rank_rag.data import shipped_collection
from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.types import Document, Embeddings, Hit
from e2rank_rag.vectors import CandidateVectors, StoredVectors

RESULTS = Path(__file__).parent / "results" / "foreign_vectors.json"
LISTS = 300
SIZES = (10, 20, 50, 100)
TIMED_QUERIES = 40


class Known:
    """An encoder that looks the vectors of known texts up, so that only the choice is measured."""

    fingerprint = "known"
    feedback = None
    evidence = None

    def __init__(self, vectors: Mapping[str, Embeddings]) -> None:
        self._vectors = vectors
        self.dim = len(next(iter(vectors.values())))

    def encode_documents(self, documents: Sequence[str], **_: object) -> Embeddings:
        return np.stack([self._vectors[text] for text in documents])


def noticed(
    known: Known,
    texts: Sequence[str],
    own: Embeddings,
    other: Embeddings,
    foreign: set[int],
    compared: int,
) -> bool:
    hits = [
        Hit(Document(str(place), text), 0.0, (other if place in foreign else own)[place])
        for place, text in enumerate(texts)
    ]
    vectors = CandidateVectors(known)  # type: ignore[arg-type]
    if compared:
        vectors.probe([[hit for place, hit in enumerate(hits) if place not in foreign][:compared]])
    try:
        vectors.probe([hits])
    except StoredVectorMismatch:
        return True
    return False


def detection(texts: list[str], vectors: Embeddings, queries: Embeddings) -> dict[str, float]:
    """Shares of the lists whose foreign vectors are noticed."""
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(vectors.shape[1],) * 2))[0].astype(np.float32)
    known = Known(dict(zip(texts, vectors, strict=True)))
    shares = {}
    for size, share, compared in product(SIZES, (0.0, 0.25, 0.5), (0, 3)):
        foreign = max(1, int(share * size))
        count = 0
        for query in queries[:LISTS]:
            nearest = np.argsort(-(vectors @ query))[:size]
            own = vectors[nearest]
            places = set(random.choice(size, foreign, replace=False).tolist())
            count += noticed(known, [texts[i] for i in nearest], own, own @ turn, places, compared)
        shares[f"{foreign} of {size}, {compared} compared before"] = count / LISTS
    return shares


def cost_ms(
    encoder: Encoder,
    texts: list[str],
    vectors: Embeddings,
    queries: list[str],
    query_vectors: Embeddings,
    policy: StoredVectors,
) -> float:
    """Processor time per query."""
    reranker = ListwiseReranker(encoder, stored_vectors=policy)
    started = time.process_time()
    for query, vector in zip(queries, query_vectors, strict=True):
        scores = vectors @ vector
        reranker.rerank(
            query,
            [
                Hit(Document(str(i), texts[i]), float(scores[i]), vectors[i])
                for i in np.argsort(-scores)[:100]
            ],
        )
    return 1000 * (time.process_time() - started) / len(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    collection = shipped_collection("scifact")
    texts = [d.text for _, d in zip(range(arguments.documents), collection.documents())]  # noqa: B905
    queries = list(collection.queries().values())[:LISTS]
    with Encoder.from_pretrained("e2rank-minilm") as encoder:
        vectors = encoder.encode_documents(texts)
        query_vectors = encoder.encode_queries(queries)
        shares = detection(texts, vectors, query_vectors)
        times: dict[str, list[float]] = {"trust": [], "check": []}
        for _ in range(arguments.rounds):
            for policy in ("trust", "check"):
                timed = queries[:TIMED_QUERIES], query_vectors[:TIMED_QUERIES]
                times[policy].append(cost_ms(encoder, texts, vectors, *timed, policy))
    ratios = [check / trust for trust, check in zip(times["trust"], times["check"], strict=True)]
    result = {
        "machine": this_machine(),
        "documents": len(texts),
        "lists": len(queries),
        "noticed": shares,
        "processor_ms_per_query": {name: spread(values) for name, values in times.items()},
        "check_over_trust": spread(ratios),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
