"""What computing float32 linear layers by oneDNN is worth, apart from everything else.

    python benchmarks/onednn_linear.py

Encodes SciFact abstracts with MiniLM at 256 tokens in float32, and single queries. Each round times
the same encoder with `OneDnnLinear` and with plain `nn.Linear`, in turn. Ratios are taken round by
round. Writes benchmarks/results/onednn_linear.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.bench.pairs import seconds, spread
from e2rank_rag.data import shipped_collection
from e2rank_rag.models.cpu import OneDnnLinear
from e2rank_rag.models.encoder import Encoder

RESULTS = Path(__file__).parent / "results" / "onednn_linear.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    documents = shipped_collection("scifact").documents()
    texts = [document.text for document in itertools.islice(documents, arguments.documents)]
    encoder = Encoder.from_pretrained("minilm", max_length=256, dtype="float32", device="cpu")
    transformer = encoder.loaded.transformer
    layers = [module for module in transformer.modules() if isinstance(module, OneDnnLinear)]

    def as_kind(kind: type[nn.Linear]) -> None:
        for layer in layers:
            layer.__class__ = kind

    def queries() -> None:
        for number in range(50):
            encoder.encode_queries([f"{texts[number][:60]} {time.perf_counter()}"])

    calls: dict[str, Callable[[], object]] = {
        "documents": lambda: encoder.encode_documents(texts),
        "queries": queries,
    }
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(arguments.rounds + 1):  # the first round fills caches
        for name, call in calls.items():
            times = {}
            for kind in (OneDnnLinear, nn.Linear) if number % 2 else (nn.Linear, OneDnnLinear):
                as_kind(kind)
                times[kind] = seconds(call)
            if number:
                ratios[name].append(times[nn.Linear] / times[OneDnnLinear])
    result = {
        "machine": this_machine(),
        "documents": len(texts),
        "plain_over_onednn": {name: spread(values) for name, values in ratios.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["plain_over_onednn"], indent=2))


if __name__ == "__main__":
    main()
