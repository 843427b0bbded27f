"""`e2rank index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import (
    ApiKey,
    CollectionName,
    Device,
    Dtype,
    Index,
    Language,
    Model,
    Threads,
    check_language,
    open_encoder,
    open_store,
    report_bad,
)
from e2rank_rag.models.shipped import DEFAULT_MODEL

if TYPE_CHECKING:
    from e2rank_rag.indexing import IndexReport
    from e2rank_rag.store import QdrantStore


def index(
    documents: Annotated[
        Path,
        typer.Argument(help="JSON lines with _id, text and title, plain or .gz; or a BEIR folder."),
    ],
    index: Index,
    collection: CollectionName = "documents",
    model: Model = DEFAULT_MODEL,
    language: Language = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete documents that the file no longer contains.")
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Report bad records and skip them, instead of stopping."),
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    api_key: ApiKey = None,
) -> None:
    """Put documents into an index. Run it again to add, change and (--prune) remove documents."""
    from e2rank_rag.indexing import index_file

    if language is not None:
        check_language(language)  # before a model is loaded
    corpus = _corpus_file(documents)
    on_bad = report_bad if skip_bad else None
    with open_encoder(model, device, dtype, threads) as encoder:
        store = _opened(index, collection, api_key, language)
        try:
            report = index_file(corpus, encoder, store, prune=prune, on_bad=on_bad, progress=True)
        except KeyboardInterrupt:
            stored = f"interrupted: {store.count():,} documents are stored"
            terminal.say(terminal.err, f"{stored}; run the same command to go on")
            raise typer.Exit(1) from None
        finally:
            store.close()
    _print_counts(report)


def _opened(index: str, collection: str, api_key: str | None, language: str | None) -> QdrantStore:
    """The collection; one without words gets them. ValueError if it has another language's.

    language: None: as an existing collection has it, English in a new one.
    """
    bm25 = check_language(language or "english")
    store = open_store(index, collection, api_key)
    if not store.exists:
        store.close()
        return open_store(index, collection, api_key, bm25=bm25)
    has = store.bm25
    if language is None or (has and has.language) == (bm25 and bm25.language):
        return store
    store.close()
    if has is None:
        store = open_store(index, collection, api_key, bm25=bm25)
        store.add_words()
        return store
    raise ValueError(
        f"{store.name} holds words in {has.language}, which --language cannot change: leave it "
        "out, or index into another --collection"
    )


def _corpus_file(path: Path) -> Path:
    from e2rank_rag.evaluation.collections import Collection

    return Collection.open(path).corpus_path if path.is_dir() else path


def _print_counts(report: IndexReport) -> None:
    counts = {
        "added": report.added,
        "updated": report.updated,
        "meta updated": report.meta_updated,
        "unchanged": report.unchanged,
        "skipped": report.skipped,
        "pruned": report.pruned,
        "got words": report.words_added,
    }
    changes = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    terminal.say(terminal.out, f"{changes} in {report.seconds:.1f} s")
    if report.cut:
        cut = f"{report.cut:,} documents were longer than {report.cut_at} tokens"
        terminal.say(terminal.out, f"{cut} and were cut there")
