"""Search latency by engine and number of documents: memory, a folder, a server.

Vectors are random, texts are those of the dataset: a search costs the same for any vectors.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.pairs import alternate, percentiles, timed
from e2rank_rag.bench.searching import first_documents, open_index, queries_of
from e2rank_rag.bench.sides import Answer, Sides
from e2rank_rag.bench.tables import Table

if TYPE_CHECKING:
    from e2rank_rag.store import QdrantStore

DIM = 384
TOP_K = 100


def measure(context: Context) -> dict[str, Any]:
    """Milliseconds by number of documents and engine, of a search by vector and a hybrid one."""
    sizes, url = context.settings.sizes, context.settings.url
    by_count = {}
    missing = {} if url else {"server": "no --url"}
    for count in sizes.engines:
        context.say(f"engines: {count:,} documents")
        with (
            tempfile.TemporaryDirectory(prefix="e2rank-bench-") as folder,
            Sides(context.start) as sides,
        ):
            places = {"memory": ":memory:", "folder": str(Path(folder) / "index")}
            if url:
                places["server"] = url
            for name, location in places.items():
                options = {
                    "data": context.model_options["data"],
                    "documents": count,
                    "location": location,
                }
                sides.add(name, f"{__name__}:engine_side", options, context.settings.environment)
            calls = {
                f"{name} {kind}": partial(side, count=sizes.queries, hybrid=kind == "hybrid")
                for name, side in sides.started.items()
                for kind in ("vector", "hybrid")
            }
            try:
                for call in calls.values():
                    call()
                rounds = alternate(calls, sizes.rounds)
                about = sides.about()
            finally:
                for side in sides.started.values():
                    side(count=0, drop=True)
        by_count[str(count)] = {
            name: {
                **about[name.split()[0]],
                "ms": percentiles([ms for each in rounds for ms in each[name].result]),
            }
            for name in calls
        }
    return {"top_k": TOP_K, "dim": DIM, "by_documents": by_count, "missing": missing}


def engine_side(data: str | None, documents: int, location: str) -> tuple[dict[str, Any], Answer]:
    """A side that searches a new collection of random vectors, which `drop` deletes."""
    import numpy as np

    from e2rank_rag.types import Document

    texts = [document.text for document in first_documents(data, documents)]
    records = [Document(str(place), texts[place % len(texts)]) for place in range(documents)]
    vectors = _random_vectors(documents, seed=0)
    name = f"e2rank-bench-{secrets.token_hex(4)}"
    written = timed(
        partial(open_index, None, records, vectors, words=True, location=location, collection=name)
    )
    store: QdrantStore = written.result
    asked = list(islice(queries_of(data), 100))
    query_vectors = _random_vectors(len(asked), seed=1)
    generator = np.random.default_rng(2)

    def answer(count: int, hybrid: bool = False, drop: bool = False) -> list[float]:
        if drop:
            store.client.delete_collection(name)
            store.close()
        ms = []
        for place in generator.integers(len(asked), size=count):
            words: dict[str, Any] = {"queries": [asked[place]]} if hybrid else {}
            vector = query_vectors[place : place + 1]
            search = partial(store.search_batch, vector, top_k=TOP_K, **words)
            ms.append(1000 * timed(search).wall)
        return ms

    return {"documents": documents, "write_seconds": written.wall}, answer


def _random_vectors(count: int, *, seed: int) -> Any:
    """float32 [count, DIM], unit length."""
    import numpy as np

    vectors = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """One line per engine and kind of search."""
    counts = list(result["by_documents"])
    rows = [
        [name, *(_cell(result["by_documents"][count][name]["ms"]) for count in counts)]
        for name in result["by_documents"][counts[0]]
    ]
    title = (
        f"A search for {result['top_k']} documents, vectors of {result['dim']} dimensions: "
        "ms at p50 / p99"
    )
    head = ["engine", *(f"{int(count):,} documents" for count in counts)]
    return [Table(title, head, rows, result["missing"])]


def _cell(ms: Mapping[str, float]) -> str:
    return f"{ms['p50']:.1f} / {ms['p99']:.1f}"
