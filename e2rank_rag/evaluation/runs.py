"""Runs and qrels, and their files (plain or `.gz`).

A run holds a score per query and document, qrels a grade. A run is ordered by score, best first;
documents with equal scores keep the order of the mapping.

`ir_measures.read_trec_run` and `read_trec_qrels` are not used: their errors name no line, they
drop the rank column, which orders ties, they accept NaN and repeated documents, and they do not
read BEIR's three columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2rank_rag.lines import decode, read_lines, write_bytes
from e2rank_rag.types import Hit

Run = Mapping[str, Mapping[str, float]]
"""query id -> document id -> score, higher is better."""

Qrels = Mapping[str, Mapping[str, int]]
"""query id -> document id -> grade; 1 and above is relevant, 0 and below is not."""


def run_from_rankings(rankings: Mapping[str, Sequence[Hit]]) -> dict[str, dict[str, float]]:
    """A run with the order of the rankings: the first of n hits scores n, the last 1.

    The hits' scores are not used. Tools that read runs sort by score and break ties by document id,
    some after rounding to 32 bits, so equal or nearly equal scores would change the ranking.

    Raises:
        ValueError: a repeated document in one ranking.
    """
    run: dict[str, dict[str, float]] = {}
    for query_id, hits in rankings.items():
        scores = run[query_id] = {}
        for place, hit in enumerate(hits):
            if hit.document.id in scores:
                raise ValueError(
                    f"document {hit.document.id!r} is twice in the ranking of query {query_id!r}"
                )
            scores[hit.document.id] = float(len(hits) - place)
    return run


def ranked_ids(query_id: str, scores: Mapping[str, float]) -> list[str]:
    """Document ids of one query, best first; ties keep the mapping's order, NaN is an error."""
    for doc_id, score in scores.items():
        if math.isnan(score):
            raise ValueError(
                f"the score of document {doc_id!r} for query {query_id!r} is NaN, which has no rank"
            )
    return sorted(scores, key=lambda doc_id: -scores[doc_id])


def write_run(run: Run, path: str | Path, *, tag: str = "e2rank") -> None:
    """Write TREC's six columns, `query Q0 document rank score tag`, ranks from 1.

    A query without documents has no line, because TREC's format cannot express it.

    Raises:
        ValueError: before anything is written, for a NaN score, and for an id or tag that is empty
            or holds white space, which separates TREC's columns.
    """
    check_column(tag, "the tag")
    lines = []
    for query_id, scores in run.items():
        check_column(query_id, "a query id")
        for rank, doc_id in enumerate(ranked_ids(query_id, scores), start=1):
            check_column(doc_id, f"a document id of query {query_id!r}")
            lines.append(f"{query_id} Q0 {doc_id} {rank} {float(scores[doc_id])!r} {tag}\n")
    write_bytes(path, "".join(lines).encode())


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read TREC's six columns; documents come by score, best first, ties by the rank column.

    Raises:
        ValueError: `FILE, line N: ...` for a wrong number of columns, a score or rank that is not a
            number, or a repeated document of a query.
    """
    ranks: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in read_lines(path):
        try:
            query_id, doc_id, rank, score = _scored(line)
            documents = ranks.setdefault(query_id, {})
            if doc_id in documents:
                raise ValueError(f"document {doc_id!r} is there twice for query {query_id!r}")
            documents[doc_id] = (-_number(score), _whole(rank, "rank"))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    run: dict[str, dict[str, float]] = {}
    for query_id, documents in ranks.items():
        best_first = sorted(documents.items(), key=lambda item: item[1])
        run[query_id] = {doc_id: -descending for doc_id, (descending, _) in best_first}
    return run


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read BEIR's `query-id <tab> corpus-id <tab> score`, with or without a header, or TREC's four
    columns.

    The first line decides which of the two it is. A pair that is judged twice has its last grade,
    as in BEIR.

    Raises:
        ValueError: `FILE, line N: ...` for a wrong number of columns, or a grade that is not a
            whole number.
    """
    qrels: dict[str, dict[str, int]] = {}
    tabs: bool | None = None
    for number, line in read_lines(path):
        try:
            if tabs is None:
                tabs = line.count(b"\t") == 2
                if tabs and _is_header(line):
                    continue
            query_id, doc_id, grade = _judgement(line, tabs=tabs)
            qrels.setdefault(query_id, {})[doc_id] = _whole(grade, "grade")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return qrels


def _scored(line: bytes) -> tuple[str, str, str, str]:
    # Split as bytes: only ASCII white space separates, as in trec_eval.
    columns = line.split()
    if len(columns) != 6:
        raise ValueError(
            f"expected the 6 columns `query Q0 document rank score tag`, got {len(columns)}"
        )
    query_id, _, doc_id, rank, score, _ = map(decode, columns)
    return query_id, doc_id, rank, score


def _judgement(line: bytes, *, tabs: bool) -> tuple[str, str, str]:
    columns = [column.strip() for column in line.split(b"\t")] if tabs else line.split()
    if tabs and len(columns) == 3 and all(columns):
        query_id, doc_id, grade = map(decode, columns)
    elif not tabs and len(columns) == 4:
        query_id, _, doc_id, grade = map(decode, columns)
    else:
        raise ValueError(
            f"expected {'3 filled columns' if tabs else '4 columns'}, got {len(columns)}; qrels "
            "are `query-id corpus-id score` with tabs between, or TREC's "
            "`query 0 document grade`, one of the two all through"
        )
    return query_id, doc_id, grade


def _is_header(line: bytes) -> bool:
    return line.split(b"\t")[0].strip().replace(b"_", b"-").lower() == b"query-id"


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"the score must be a number, got {text!r}")
    return value


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"the {name} must be a whole number, got {text!r}") from None


def check_column(value: str, name: str) -> None:
    """ValueError if a value cannot be in a column of a TREC run."""
    if value.encode().split() != [value.encode()]:
        raise ValueError(
            f"{name} is {value!r}; a TREC run separates its columns by white space, so what stands "
            "in them may not be empty or hold any: rename it, or keep this run in another form"
        )
