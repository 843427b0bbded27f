"""`e2rank demo`: index, search, rerank and measure a real dataset, in one command.

SciFact (5183 abstracts) ships with the package; the index is kept in the user's cache folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import platformdirs
from rich.console import Console

from e2rank_rag.data import shipped_collection
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.evaluation.systems import run_system
from e2rank_rag.indexing import index_file
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import OpenOptions
from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rendering import before_after_table, systems_table
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.terminal import printable
from e2rank_rag.words import Bm25

# One query that gains much, one that gains a little, and one that loses.
SHOWN_QUERIES = ("644", "1", "800")
SHOWN_HITS = 8
METHODS = ("retrieve", "hybrid", "evidence", "listwise")


def index_folder() -> Path:
    """The folder of the demo's index."""
    return platformdirs.user_cache_path("e2rank_rag") / "demo"


def run_demo(
    console: Console,
    *,
    model: str = DEFAULT_MODEL,
    folder: Path | None = None,
    collection: Collection | None = None,
    **options: Unpack[OpenOptions],
) -> None:
    """Index, search, rerank and measure, printing to the console; progress goes to stderr.

    collection: a dataset instead of SciFact; the first queries of its `test` split are shown.
    options: how the model is opened, see `OpenOptions`.
    """
    folder = index_folder() if folder is None else folder
    about = "SciFact: scientific claims against 5,183 abstracts"
    if collection is not None:
        about = f"Collection: {collection.name}"
    place = _from_home(folder)
    start = printable(f"{about}. Model: {model}. Qdrant in {place}")
    console.print(start, highlight=False, markup=False)
    shown = SHOWN_QUERIES if collection is None else _first_queries(collection)
    collection = shipped_collection("scifact") if collection is None else collection
    with Encoder.from_pretrained(model, **options) as encoder:
        name = f"{collection.name}-{encoder.fingerprint[:8]}-english"
        store = QdrantStore.open(folder, name, bm25=Bm25())
        try:
            _index(console, collection, encoder, store)
            _show_queries(console, collection, encoder, store, shown)
            _measure(console, collection, encoder, store)
        finally:
            store.close()


def _from_home(folder: Path) -> str:
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def _index(console: Console, collection: Collection, encoder: Encoder, store: QdrantStore) -> None:
    report = index_file(collection.corpus_path, encoder, store, progress=True)
    if report.added:
        cut = f"; {report.cut:,} of them were longer than {report.cut_at} tokens and were cut there"
        console.print(
            f"Indexed {report.added:,} documents in {report.seconds:.0f} s"
            f"{cut if report.cut else ''}.",
            highlight=False,
        )
    else:
        console.print(f"The index holds all {report.unchanged:,} documents.", highlight=False)


def _first_queries(collection: Collection) -> tuple[str, ...]:
    return tuple(collection.queries("test"))[: len(SHOWN_QUERIES)]


def _show_queries(
    console: Console,
    collection: Collection,
    encoder: Encoder,
    store: QdrantStore,
    shown: Sequence[str],
) -> None:
    queries, qrels = collection.queries("test"), collection.qrels("test")
    retrieval = SearchPipeline(encoder, store)
    # Indexing has compared the store's record with this encoder.
    reranker = ListwiseReranker(encoder, stored_vectors="trust")
    for id in shown:
        found = retrieval.search(queries[id], top_k=100)
        started = time.perf_counter()
        reranking = reranker.rerank_batch([queries[id]], [found])
        seconds = time.perf_counter() - started
        prompt = reranking.report.prompts[0]
        console.print()
        console.print(
            before_after_table(
                found,
                reranking[0],
                title=queries[id],
                relevant=qrels[id].keys(),
                rows=SHOWN_HITS,
                width=console.width,
            )
        )
        console.print(
            f"{len(found)} candidates reranked in {1000 * seconds:.0f} ms: one prompt of "
            f"{prompt.tokens} tokens with {prompt.documents} of the documents; "
            "no document was encoded.",
            highlight=False,
        )


def _measure(
    console: Console, collection: Collection, encoder: Encoder, store: QdrantStore
) -> None:
    queries, qrels = collection.queries("test"), collection.qrels("test")
    results = {
        system: run_system(system, encoder, store, queries, qrels, progress=True)
        for system in METHODS
    }
    console.print()
    name = "SciFact" if collection.name == "scifact" else collection.name
    console.print(systems_table(results, title=f"{name} test, {len(queries)} queries"))
    console.print(
        "● relevant; ↑↓ places moved; ms/query from the query's text to 100 ranked hits.",
        highlight=False,
    )
