"""One experiment: a split of a dataset, the methods run on it, and the files with the results."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from e2rank_rag.documents import BadRecord
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.evaluation.runs import (
    check_column,
    read_qrels,
    read_run,
    run_from_rankings,
    write_run,
)
from e2rank_rag.evaluation.systems import Comparison, SystemResult, candidates_of_run
from e2rank_rag.indexing import index_documents
from e2rank_rag.types import Document, Store, TextEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Queries and judgements of a split; with `candidates`, also a ranking to rerank per query.

    unread: judged queries that could not be read. They are in the qrels but not in the queries, so
        they have no ranking and count as zero.
    """

    collection: Collection
    split: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]] | None = None
    unread: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        folder: str | Path,
        split: str,
        *,
        run: str | Path | None = None,
        qrels: str | Path | None = None,
        on_bad: Callable[[BadRecord], None] | None = None,
    ) -> Self:
        """A BEIR folder, with candidates from a TREC run and judgements from a file if given.

        on_bad: called with each bad line of the queries; if its query is judged, it is in `unread`.

        Raises ValueError for judged queries that are missing in the folder, for unreadable files,
        and, if `on_bad` is None, for a bad line of the queries.
        """
        collection = Collection.open(folder)
        judged = collection.qrels(split) if qrels is None else read_qrels(qrels)
        bad: list[BadRecord] = []

        def skip(record: BadRecord) -> None:
            bad.append(record)
            if on_bad is not None:
                on_bad(record)

        queries = collection.queries(on_bad=None if on_bad is None else skip)
        unread = tuple(query for query in judged if query not in queries)
        unexplained = set(unread) - {record.id for record in bad}
        # A bad line without an id may be any of the missing queries.
        if len(unexplained) > sum(record.id is None for record in bad):
            first = next(query for query in judged if query in unexplained)
            raise ValueError(
                f"{folder} lacks {len(unexplained)} of {len(judged)} judged queries, the first is "
                f"{first!r}"
            )
        return cls(
            collection=collection,
            split=split,
            queries={query: queries[query] for query in judged if query in queries},
            qrels=judged,
            candidates=None if run is None else candidates_of_run(read_run(run)),
            unread=unread,
        )

    @property
    def name(self) -> str:
        return self.collection.name

    def documents(self) -> Iterator[Document]:
        """The documents of the corpus; with candidates, only these. Bad records are logged."""
        documents = self.collection.documents(on_bad=_log_bad)
        if self.candidates is None:
            yield from documents
            return
        wanted = {id for query in self.queries for id in self.candidates.get(query, ())}
        for document in documents:
            if document.id in wanted:
                wanted.discard(document.id)
                yield document
        if wanted:
            raise ValueError(
                f"{len(wanted)} documents of the run are not in {self.collection.corpus_path}, "
                f"among them {sorted(wanted)[:5]}"
            )

    def check_outputs(self, json_file: Path | None, run_dir: Path | None) -> None:
        """Make the folders for `write_json` and `write_runs`, and check the ids for `write_runs`.

        Raises before hours of measuring: OSError if a file cannot be written, ValueError for an id
        that a TREC run cannot hold.
        """
        for folder in (run_dir, None if json_file is None else json_file.parent):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(f"{folder} cannot be written")
        if json_file is not None and json_file.is_dir():
            raise IsADirectoryError(f"{json_file} is a folder; name a file for the figures")
        if run_dir is None:
            return
        for query in self.queries:
            check_column(query, "a query id")
        # The ids of given candidates were read from such columns.
        if self.candidates is None:
            for document in self.collection.documents(on_bad=lambda _: None):
                check_column(document.id, "a document id")

    def write_json(
        self,
        path: Path,
        results: Mapping[str, SystemResult],
        *,
        model: str,
        reranker: str | None = None,
    ) -> None:
        """`{collection, split, model, systems: {name: {measure: fraction, seconds_per_query}}}`,
        and, if they apply: `reranker`, a separate reranker; `own_documents_left_out`, a number of
        queries (see `systems.own_documents`); `unread_queries`, the ids of queries that count as
        zero."""
        systems = {
            name: {**result.measures, "seconds_per_query": result.seconds_per_query}
            for name, result in results.items()
        }
        left_out = max((result.left_out for result in results.values()), default=0)
        record = {
            "collection": self.name,
            "split": self.split,
            "model": model,
            **({} if reranker is None else {"reranker": reranker}),
            **({"own_documents_left_out": left_out} if left_out else {}),
            **({"unread_queries": list(self.unread)} if self.unread else {}),
            "systems": systems,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def write_runs(self, folder: Path, results: Mapping[str, SystemResult]) -> None:
        """A TREC run per method, `COLLECTION.SPLIT.SYSTEM.trec`; its scores only give the order."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            path = folder / f"{self.name}.{self.split}.{name}.trec"
            write_run(run_from_rankings(result.rankings), path, tag=name)


def run_experiment(
    experiment: Experiment,
    encoder: TextEncoder,
    store: Store,
    systems: Sequence[str],
    *,
    progress: bool = False,
    **options: Any,
) -> dict[str, SystemResult]:
    """Index the documents that the store lacks, then run each method.

    options: the other fields of `systems.Comparison`, by name.
    """
    index_documents(experiment.documents(), encoder, store, on_bad=_log_unfit, progress=progress)
    comparison = Comparison(
        encoder,
        store,
        experiment.queries,
        experiment.qrels,
        candidates=experiment.candidates,
        progress=progress,
        **options,
    )
    return {system: comparison.run(system) for system in systems}


def _log_bad(bad: BadRecord) -> None:
    logger.warning("left out line %d of the corpus: %s", bad.line, bad.reason)


def _log_unfit(bad: BadRecord) -> None:
    # `bad.line` counts the documents that could be read, so it is not a line number.
    logger.warning("left out document %d: %s", bad.line, bad.reason)
