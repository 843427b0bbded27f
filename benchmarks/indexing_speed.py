"""Encoding documents with MiniLM: this library against sentence-transformers, in alternating pairs.

    python benchmarks/indexing_speed.py

2000 SciFact abstracts at 256 tokens, float32, the same threads; sentence-transformers at its best
batch size of 8, 32 and 128 (found first, on 400 documents). Five pairs in turn; the ratio is taken
pair by pair. Writes benchmarks/results/indexing_speed.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
from pathlib import Path

import numpy as np
from machine import machine, seconds
from sentence_transformers import SentenceTransformer

from e2rank_rag.data import shipped_collection
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.shipped import minilm_folder

RESULTS = Path(__file__).parent / "results" / "indexing_speed.json"
MAX_LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    documents = shipped_collection("scifact").documents()
    texts = [document.text for document in itertools.islice(documents, arguments.documents)]

    ours = Encoder.from_pretrained("minilm", max_length=MAX_LENGTH, dtype="float32", device="cpu")
    theirs = SentenceTransformer(str(minilm_folder()), device="cpu")
    theirs.max_seq_length = MAX_LENGTH

    def encode_theirs(some: list[str], batch_size: int) -> np.ndarray:
        return theirs.encode(some, batch_size=batch_size, show_progress_bar=False)

    difference = np.abs(ours.encode_documents(texts[:64]) - encode_theirs(texts[:64], 32)).max()
    batch_size = min(
        (8, 32, 128), key=lambda size: seconds(lambda: encode_theirs(texts[:400], size))
    )
    pairs = []
    for pair in range(arguments.pairs):
        timed = {
            "ours": seconds(lambda: ours.encode_documents(texts, progress=False)),
            "sentence-transformers": seconds(lambda: encode_theirs(texts, batch_size)),
        }
        pairs.append(timed)
        print(
            f"pair {pair + 1}: "
            + ", ".join(f"{name} {value:.1f} s" for name, value in timed.items())
        )
    ratios = sorted(pair["sentence-transformers"] / pair["ours"] for pair in pairs)
    result = {
        "machine": machine(),
        "documents": len(texts),
        "max_length": MAX_LENGTH,
        "batch_size_of_sentence_transformers": batch_size,
        "largest_difference_of_vectors": float(difference),
        "pairs": pairs,
        "speed_ratio": {
            "worst": ratios[0],
            "median": statistics.median(ratios),
            "best": ratios[-1],
        },
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"ours is {result['speed_ratio']} times as fast; written to {RESULTS}")


if __name__ == "__main__":
    main()
