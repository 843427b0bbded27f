"""Documents into a store: streamed, resumable, safe to run twice.

    report = index_file("corpus.jsonl.gz", encoder, store)

A document that the store holds with the same text and meta is left alone. If only its meta changed,
the meta is written without encoding. All others are encoded and written in batches, so calling this
again after an interruption continues where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import cast

from e2rank_rag.documents import BadRecord, count_lines, read_numbered
from e2rank_rag.lines import file_state
from e2rank_rag.progress import ProgressReport
from e2rank_rag.store.layout import same_meta
from e2rank_rag.types import Cut, Document, Hit, HybridStore, Store, TextEncoder
from e2rank_rag.vectors import CandidateVectors

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 8_000_000
"""A batch ends at whichever limit is reached first: memory is bounded for long documents too."""

PROBED_DOCUMENTS = 64
"""How many to read from a collection without a record, to find two with a text and a vector."""

logger = logging.getLogger(__name__)

OnBad = Callable[[BadRecord], None]


@dataclass
class IndexReport:
    """What one call did, in documents.

    added, updated: encoded and written. meta_updated: only the meta was written.
    unchanged: in the store already. skipped: bad records. pruned: removed from the store.
    words_added: of the unchanged and those with new meta, how many got the sparse vector that they
        lacked.
    cut: longer than the encoder's limit of `cut_at` tokens; encoded up to the limit.
    """

    added: int = 0
    updated: int = 0
    meta_updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    pruned: int = 0
    words_added: int = 0
    cut: int = 0
    cut_at: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def read(self) -> int:
        """Documents that were read, bad records included."""
        return self.added + self.updated + self.meta_updated + self.unchanged + self.skipped


def index_file(
    path: str | Path,
    encoder: TextEncoder,
    store: Store,
    *,
    prune: bool = False,
    on_bad: OnBad | None = None,
    progress: bool = False,
) -> IndexReport:
    """Index a `.jsonl` or `.jsonl.gz` file (see `documents.read_documents` for its records).

    prune: afterwards, delete the documents that the store holds and the file does not. If the file
        changed while it was read, nothing is deleted and ValueError is raised. ValueError also for
        a pipe, because a pipe that broke off looks like one that ended.
    on_bad: called with each bad record (unreadable, no text, repeated id), which is skipped.
        Without it the first bad record raises a ValueError that names the line; documents that
        were written before stay.
    progress: show the rate and the time left on stderr; for a pipe only the rate.
    """
    bad = _Bad(on_bad, where=str(path), prune=prune)
    numbered = read_numbered(path, on_bad=bad)
    before = file_state(path)
    if prune and before is None:
        raise ValueError(
            f"{path} is a pipe or a device, and one that breaks off looks like one that ends, so "
            "nothing is pruned: write it to a file and index that, or run without prune"
        )
    total = count_lines(path) if progress and before is not None else None

    def changed() -> str | None:
        try:
            same = before is None or file_state(path) == before
        except OSError as error:
            return f"{path} can no longer be read ({error})"
        return None if same else f"{path} changed while it was read"

    source = _Source(numbered, bad, total, changed)
    return _index(source, encoder, store, prune=prune, progress=progress)


def index_documents(
    documents: Iterable[Document],
    encoder: TextEncoder,
    store: Store,
    *,
    prune: bool = False,
    on_bad: OnBad | None = None,
    progress: bool = False,
    total: int | None = None,
) -> IndexReport:
    """Index documents from any iterable; one batch is in memory at a time.

    Options are those of `index_file`; the line of a BadRecord is the document's position, from 1.
    All ids stay in memory (some 100 bytes each), to recognise repeated ones.

    total: how many documents will come, for the progress. With `prune`, another number raises
        ValueError and nothing is pruned. Without `total`, `prune` takes the end of `documents` for
        the end of the source, so an iterator must raise if its source breaks off.
    """
    bad = _Bad(on_bad, where="documents", prune=prune)
    came = 0

    def numbered() -> Iterator[tuple[int, Document]]:
        nonlocal came
        for document in documents:
            came += 1
            yield came, document

    def changed() -> str | None:
        if not prune or total is None or came == total:
            return None
        return f"{came:,} documents came where total said {total:,}"

    source = _Source(numbered(), bad, total, changed)
    return _index(source, encoder, store, prune=prune, progress=progress)


class _Bad:
    """Handles bad records, and keeps their ids, which must not be pruned."""

    def __init__(self, on_bad: OnBad | None, *, where: str, prune: bool) -> None:
        self.ids: set[str] = set()
        self.count = 0
        self._on_bad = on_bad
        self._where = where
        self._prune = prune

    def __call__(self, record: BadRecord) -> None:
        where = f"{self._where}, line {record.line}"
        if self._on_bad is None:
            raise ValueError(f"{where}: {record.reason}")
        if self._prune and record.id is None:
            raise ValueError(
                f"{where}: {record.reason}; without its id, pruning could delete a document "
                "that is still in the source: correct the line, or run without prune"
            )
        if record.id is not None:
            self.ids.add(record.id)
        self.count += 1
        self._on_bad(record)


@dataclass(frozen=True)
class _Source:
    """Numbered documents.

    total: how many, if known. changed: says at the end why there may be more than were read.
    """

    numbered: Iterable[tuple[int, Document]]
    bad: _Bad
    total: int | None
    changed: Callable[[], str | None]


def _index(
    source: _Source, encoder: TextEncoder, store: Store, *, prune: bool, progress: bool
) -> IndexReport:
    bad = source.bad
    started = time.monotonic()
    store.prepare(
        encoder.dim,
        fingerprint=encoder.fingerprint,
        model=getattr(encoder, "name", type(encoder).__name__),
    )
    probe_foreign(encoder, store)
    # Documents that another writer adds after this are not pruned: the source may hold them now.
    present = list(store.ids()) if prune else []
    writer = _Writer(encoder, store)
    seen: set[str] = set()
    with ProgressReport("indexing", total=source.total, shown=progress) as shown:
        for batch in _batches(_good(source, store, seen)):
            writer.write(batch)
            shown.advance(len(batch))
    if not seen and (prune or not bad.count):
        raise ValueError(
            "there is nothing to index: the source has no document that can be indexed"
        )
    reason = source.changed()
    if prune and reason is not None:
        raise ValueError(
            f"{reason}, so nothing was pruned: the source may hold documents that were not read. "
            "The written documents stay; index again when the source is complete"
        )
    if reason is not None:
        logger.warning("%s: index again, documents may be missing", reason)
    writer.prune([id for id in present if id not in seen and id not in bad.ids])
    writer.report.skipped = bad.count
    writer.report.seconds = time.monotonic() - started
    return writer.report


def _good(source: _Source, store: Store, seen: set[str]) -> Iterator[Document]:
    """Documents that can be indexed; their ids are added to `seen`."""
    for number, document in source.numbered:
        reason = _fault(document, store, seen)
        if reason is not None:
            source.bad(BadRecord(number, reason, document.id or None))
            continue
        seen.add(document.id)
        yield document


def _fault(document: Document, store: Store, seen: set[str]) -> str | None:
    """Why this document cannot be indexed; None if it can."""
    if not document.id:
        return "the id is empty"
    if document.id in seen:
        return f"id {document.id!r} was given before; ids must be unique"
    try:
        store.check([document])
    except ValueError as error:
        return str(error)
    except RecursionError:
        return f"the meta of document {document.id!r} is nested too deeply"
    if not document.text.strip():
        return f"document {document.id!r} has no text"
    return None


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def probe_foreign(encoder: TextEncoder, store: Store) -> None:
    """Probe two vectors of a collection without a record of its model.

    Raises StoredVectorMismatch before anything is written beside the vectors of another model.
    """
    if store.fingerprint is not None:
        return
    some = store.get(list(islice(store.ids(), PROBED_DOCUMENTS)), with_embeddings=True)
    hits = [
        Hit(known.document, 0.0, known.embedding, store.name)
        for known in some.values()
        if known.document.text
    ]
    CandidateVectors(encoder).attach([hits])


class _Writer:
    """Writes batches to a prepared store and counts what it did."""

    def __init__(self, encoder: TextEncoder, store: Store) -> None:
        self.encoder = encoder
        self.store = store
        self.report = IndexReport()
        self._with_words = _with_words(store)
        words = self._with_words
        self._wordless = set() if words is None else set(words.ids_without_words())

    def write(self, batch: list[Document]) -> None:
        stored = self.store.get([document.id for document in batch])
        to_encode: list[Document] = []
        meta_only: list[Document] = []
        for document in batch:
            known = stored.get(document.id)
            if known is None or known.document.text != document.text:
                to_encode.append(document)
                self.report.added += known is None
                self.report.updated += known is not None
            elif not same_meta(known.document, document):
                meta_only.append(document)
        if meta_only:
            self.store.update_meta(meta_only)
        self._add_words(batch, to_encode)
        if to_encode:
            texts = [document.text for document in to_encode]
            embeddings = self.encoder.encode_documents(texts, on_cut=self._count_cut)
            self.store.upsert(to_encode, embeddings)
        self.report.meta_updated += len(meta_only)
        self.report.unchanged += len(batch) - len(meta_only) - len(to_encode)

    def _add_words(self, batch: list[Document], to_encode: list[Document]) -> None:
        """Write the sparse vectors that documents with the same text lack."""
        anew = {document.id for document in to_encode}
        lacking = [d for d in batch if d.id in self._wordless and d.id not in anew]
        if self._with_words is not None and lacking:
            self.report.words_added += self._with_words.write_words(lacking)

    def prune(self, gone: list[str]) -> None:
        if gone:
            self.store.delete(gone)
        self.report.pruned = len(gone)

    def _count_cut(self, cut: Cut) -> None:
        self.report.cut += cut.texts
        self.report.cut_at = cut.limit


def _with_words(store: Store) -> HybridStore | None:
    """The store, if it can search by words."""
    return cast("HybridStore", store) if getattr(store, "hybrid", False) else None
