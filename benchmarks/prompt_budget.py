"""Which candidates, and how much of each, a 512-token listwise prompt should hold: chosen on dev.

    python benchmarks/prompt_budget.py DATA/nfcorpus DATA/bioasq_snippets --split dev

Each argument is a BEIR folder. Retrieves 100 candidates once, then reranks them under every budget
and prints nDCG@10 per collection and on the mean; writes benchmarks/results/prompt_budget.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.indexing import index_documents
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.recipe import ListwiseBudget
from e2rank_rag.rerankers import score_by_vector
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Hit

# (documents, tokens of each at most); a list that does not fit shares the room.
BUDGETS = [
    (depth, tokens)
    for depth in (3, 5, 8, 12, 16)
    for tokens in (25, 50, 80, 150)
    if depth * tokens <= 900
]
WEIGHTS = (0.0, 0.25, 0.5, 0.75)
RESULTS = Path(__file__).parent / "results" / "prompt_budget.json"


def candidates(
    encoder: Encoder, folder: Path, split: str
) -> tuple[dict[str, str], dict[str, dict[str, int]], list[list[Hit]]]:
    """The queries, judgements and 100 nearest documents of a collection."""
    collection = Collection.open(folder)
    store = QdrantStore.open(":memory:", collection.name)
    index_documents(
        collection.documents(on_bad=lambda bad: None),
        encoder,
        store,
        on_bad=lambda bad: None,
        progress=True,
    )
    queries = collection.queries(split)
    vectors = encoder.encode_queries(list(queries.values()))
    found = store.search_batch(vectors, top_k=100)
    store.close()
    return queries, collection.qrels(split), found


def ndcg(
    queries: dict[str, str], qrels: dict[str, dict[str, int]], rankings: list[list[Hit]]
) -> float:
    run = run_from_rankings(dict(zip(queries, rankings, strict=True)))
    return evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--model", default="minilm")
    arguments = parser.parse_args()
    encoder = Encoder.from_pretrained(arguments.model)
    data = {
        folder.name: candidates(encoder, folder, arguments.split)
        for folder in arguments.collections
    }
    rows = {"retrieval": {name: ndcg(*found) for name, found in data.items()}}
    for depth, tokens in BUDGETS:
        budget = ListwiseBudget(depth=depth, document_tokens=tokens, max_tokens=512)
        prompted = encoder.with_recipe(encoder.recipe.model_copy(update={"listwise": budget}))
        for name, (queries, qrels, found) in data.items():
            texts = list(queries.values())
            plain = encoder.encode_queries(texts)
            shown = [[hit.document.text for hit in hits] for hits in found]
            listwise = prompted.encode_listwise(texts, shown, query_weight=0.0).embeddings
            for weight in WEIGHTS:
                # Cosine ranks alike whatever the length of the query's vector.
                vectors = weight * plain + (1 - weight) * listwise
                rankings = [score_by_vector(h, v) for h, v in zip(found, vectors, strict=True)]
                row = rows.setdefault(f"{depth} x {tokens}, query weight {weight}", {})
                row[name] = ndcg(queries, qrels, rankings)
        prompted.close()
    table = Table("prompt", *data, "mean", title=f"nDCG@10, {arguments.split}, {arguments.model}")
    for name, values in rows.items():
        mean = sum(values.values()) / len(values)
        table.add_row(
            name, *(f"{100 * value:.2f}" for value in values.values()), f"{100 * mean:.2f}"
        )
    Console().print(table)
    RESULTS.write_text(
        json.dumps({"split": arguments.split, "model": arguments.model, "ndcg@10": rows}, indent=2)
    )


if __name__ == "__main__":
    main()
