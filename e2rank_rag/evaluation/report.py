"""One experiment: a split of a dataset, the methods run on it, and the files with the results."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, Unpack

from e2rank_rag.documents import BadRecord
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.evaluation.differences import Differences
from e2rank_rag.evaluation.runs import (
    check_column,
    read_qrels,
    read_run,
    run_from_rankings,
    write_run,
)
from e2rank_rag.evaluation.systems import (
    Comparison,
    MethodOptions,
    SystemResult,
    candidates_of_run,
)
from e2rank_rag.indexing import index_documents
from e2rank_rag.types import Document, Store, TextEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Queries and judgements of a split, with candidates or without.

    candidates: query id -> ids of documents to rank, best first; None searches the whole corpus.
    unread: judged queries that could not be read. They are in the qrels and not in the queries, so
        they have no ranking and count as 0.
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
        """A split of a BEIR folder.

        run: a TREC run with the candidates.
        qrels: a file with the judgements, in place of those of the split.
        on_bad: called with each bad line of the queries, which is then left out. A judged query
            among them is in `unread`.

        Raises:
            FileNotFoundError: no such folder, or a file that it lacks.
            ValueError: judged queries that the folder lacks; a bad line of a file, of the queries'
                file only when `on_bad` is None.
        """
        collection = Collection.open(folder)
        judged = collection.qrels(split) if qrels is None else read_qrels(qrels)
        queries = collection.judged_queries(judged, on_bad=on_bad)
        return cls(
            collection=collection,
            split=split,
            queries=queries,
            qrels=judged,
            candidates=None if run is None else candidates_of_run(read_run(run)),
            unread=tuple(query for query in judged if query not in queries),
        )

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.collection.name

    def documents(self) -> Iterator[Document]:
        """The documents of the corpus; with candidates, those documents only. Bad lines are logged.

        Raises ValueError for candidates that the corpus lacks, after its last document.
        """
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
                f"among them {sorted(wanted)[:5]}; add them, or take them out of the run"
            )

    def check_outputs(self, json_file: Path | None, run_dir: Path | None) -> None:
        """Make the folders for `write_json` and `write_runs`, so that errors come before measuring.

        Raises:
            OSError: a folder cannot be made or written, or `json_file` is a folder.
            ValueError: with `run_dir`, an id of a query or document that a TREC run cannot hold.
        """
        for folder in (run_dir, None if json_file is None else json_file.parent):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(f"{folder} cannot be written; name another folder")
        if json_file is not None and json_file.is_dir():
            raise IsADirectoryError(f"{json_file} is a folder; name a file in it for the figures")
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
        differences: Differences | None = None,
    ) -> None:
        """Write `{collection, split, model, systems: {name: {measure: value}}}`.

        Values are fractions; `seconds_per_query` stands beside them. More keys appear where they
        say something: `reranker`; `own_documents_left_out`, a number of queries (see
        `systems.own_documents`); `unread_queries`, their ids; and `differences`, which has
        `{against, wins, losses, ties, p, p_holm}` for each method and measure.
        """
        systems = {
            name: {**result.measures, "seconds_per_query": result.seconds_per_query}
            for name, result in results.items()
        }
        compared = {}
        if differences is not None:
            compared = {
                name: {m: {"against": differences.against, **asdict(d)} for m, d in by.items()}
                for name, by in differences.by_method.items()
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
            **({"differences": compared} if compared else {}),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def write_runs(self, folder: Path, results: Mapping[str, SystemResult]) -> None:
        """Write a TREC run per method, `DATASET.SPLIT.METHOD.trec`; see `run_from_rankings`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            path = folder / f"{self.name}.{self.split}.{name}.trec"
            write_run(run_from_rankings(result.rankings), path, tag=name)


def run_experiment(
    experiment: Experiment,
    encoder: TextEncoder,
    store: Store,
    systems: Sequence[str],
    **options: Unpack[MethodOptions],
) -> dict[str, SystemResult]:
    """Index the documents that the store lacks, then run each method.

    systems: names of methods, see `Comparison.run`; options: other fields of `Comparison`, by name.

    Raises the ValueError of `Comparison.run` before anything is indexed.
    """
    comparison = Comparison(
        encoder,
        store,
        experiment.queries,
        experiment.qrels,
        candidates=experiment.candidates,
        **options,
    )
    for system in systems:
        comparison.check(system)
    progress = comparison.progress
    index_documents(experiment.documents(), encoder, store, on_bad=_log_unfit, progress=progress)
    return {system: comparison.run(system) for system in systems}


def _log_bad(bad: BadRecord) -> None:
    logger.warning("left out line %d of the corpus: %s", bad.line, bad.reason)


def _log_unfit(bad: BadRecord) -> None:
    # `bad.line` counts the readable documents here, so it is not the number of a line.
    logger.warning("left out document %d: %s", bad.line, bad.reason)
