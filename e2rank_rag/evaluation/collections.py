"""Datasets in BEIR folders: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`.

Each file may be plain or `.gz`. Everything that reads a BEIR folder reads it here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from e2rank_rag.documents import BadRecord, read_documents, read_numbered
from e2rank_rag.evaluation.runs import Qrels, read_qrels
from e2rank_rag.types import Document


@dataclass(frozen=True, slots=True)
class Collection:
    """A dataset in one BEIR folder; every call reads its files again."""

    name: str
    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Collection:
        """The dataset of a folder that holds a corpus and queries; it has the folder's name.

        Raises:
            FileNotFoundError: no such folder, or no corpus or queries in it; lists its contents.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"no folder {path}; {_listing(path.parent)}")
        _find(path, "corpus.jsonl")
        _find(path, "queries.jsonl")
        return cls(path.resolve().name, path)

    @property
    def corpus_path(self) -> Path:
        """The file that `documents` reads."""
        return _find(self.folder, "corpus.jsonl")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have judgements, sorted; empty without a `qrels` folder."""
        names = (path.name.removesuffix(".gz") for path in (self.folder / "qrels").glob("*.tsv*"))
        return tuple(sorted({name[: -len(".tsv")] for name in names if name.endswith(".tsv")}))

    def documents(self, *, on_bad: Callable[[BadRecord], None] | None = None) -> Iterator[Document]:
        """The corpus in file order; see `read_documents` for `on_bad` and the errors."""
        return read_documents(self.corpus_path, on_bad=on_bad)

    def queries(
        self, split: str | None = None, *, on_bad: Callable[[BadRecord], None] | None = None
    ) -> dict[str, str]:
        """query id -> text, in file order; with a split, only queries with judgements in it.

        on_bad: called with each bad line, which is then left out: one that is no query, or that
            repeats an id.

        Raises:
            ValueError: `FILE, line N: reason` for a bad line if `on_bad` is None; an unknown split;
                a query that is judged in the split and missing in the file.
        """
        path = _find(self.folder, "queries.jsonl")
        queries: dict[str, str] = {}
        for line, query in read_numbered(path, on_bad=on_bad):
            if query.id not in queries:
                queries[query.id] = query.text
                continue
            reason = f"query id {query.id!r} is there twice; keep one of the two lines"
            if on_bad is None:
                raise ValueError(f"{path}, line {line}: {reason}")
            on_bad(BadRecord(line, reason, query.id))
        if split is None:
            return queries
        judged = self.qrels(split)
        self._check_present(queries, judged)
        return {query_id: text for query_id, text in queries.items() if query_id in judged}

    def judged_queries(
        self, qrels: Qrels, *, on_bad: Callable[[BadRecord], None] | None = None
    ) -> dict[str, str]:
        """query id -> text of the queries in the qrels, in the order of the qrels.

        on_bad: as in `queries`; a judged query on a bad line is left out.

        Raises:
            ValueError: as in `queries`, and for a judged query that no line of the file can hold.
        """
        bad: list[BadRecord] = []

        def skip(record: BadRecord) -> None:
            bad.append(record)
            if on_bad is not None:
                on_bad(record)

        queries = self.queries(on_bad=None if on_bad is None else skip)
        unread = {record.id for record in bad if record.id is not None}
        # A bad line that gives no id may hold any of the missing queries.
        without_id = sum(record.id is None for record in bad)
        self._check_present(queries.keys() | unread, qrels, allowed=without_id)
        return {query_id: queries[query_id] for query_id in qrels if query_id in queries}

    def _check_present(self, ids: Container[str], judged: Qrels, *, allowed: int = 0) -> None:
        missing = [query_id for query_id in judged if query_id not in ids]
        if len(missing) > allowed:
            raise ValueError(
                f"{_find(self.folder, 'queries.jsonl')} lacks {len(missing)} of the {len(judged)} "
                f"judged queries, the first is {missing[0]!r}; add them or drop their qrels"
            )

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """query id -> document id -> grade.

        Raises:
            ValueError: no such split (the message lists the splits), or a bad line.
        """
        if split not in self.splits:
            there = ", ".join(self.splits) or "no qrels/*.tsv at all"
            raise ValueError(f"{self.folder} has no split {split!r}; there is: {there}")
        return read_qrels(_find(self.folder / "qrels", f"{split}.tsv"))


def _find(folder: Path, name: str) -> Path:
    """The file, or its `.gz`."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no {name} or {name}.gz in {folder}; {_listing(folder)}")


def _listing(folder: Path, *, most: int = 20) -> str:
    if not folder.is_dir():
        return f"{folder} is not there either"
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{folder} holds {', '.join(names[:most])}{more}"
