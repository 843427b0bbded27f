"""The queries that won and lost most, each with its list before and after reranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from e2rank_rag.report.records import Case, Deep, Held, Row
from e2rank_rag.report.variants import Task
from e2rank_rag.types import Hit

CASES = 10
ROWS = 10
TEXT_CHARACTERS = 160

Values = Mapping[str, float]
"""query id -> nDCG@10."""


def pick_cases(
    dataset: str, task: Task, before: Values, after: Values, held: Mapping[str, Held]
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """The ten queries with the largest gain, and the ten with the largest loss, largest first.

    There are fewer where fewer queries gain or lose anything. Equal ones keep the queries' order.
    held: query id -> what its prompt held; empty for a reranker without prompts.
    """
    gains = {id: after[id] - before[id] for id in task.queries}
    falling = sorted(gains, key=lambda id: -gains[id])
    rising = sorted(gains, key=lambda id: gains[id])
    won = [id for id in falling[:CASES] if gains[id] > 0]
    lost = [id for id in rising[:CASES] if gains[id] < 0]

    def case(id: str) -> Case:
        return _case(dataset, task, id, (before[id], after[id]), held.get(id))

    return tuple(map(case, won)), tuple(map(case, lost))


def _case(
    dataset: str, task: Task, id: str, values: tuple[float, float], held: Held | None
) -> Case:
    grades = task.qrels[id]
    before, after = task.candidates[id], task.reranked[id]
    shown = set() if held is None else set(held.ids)
    ranks_before, ranks_after = _ranks(before), _ranks(after)

    def row(rank: int, hit: Hit, others: Mapping[str, int]) -> Row:
        id = hit.document.id
        return Row(
            rank=rank,
            id=id,
            grade=grades.get(id),
            other_rank=others.get(id),
            shown=id in shown,
            text=beginning(hit.document.text),
        )

    def rows(hits: Sequence[Hit], others: Mapping[str, int]) -> tuple[Row, ...]:
        return tuple(row(rank, hit, others) for rank, hit in enumerate(hits[:ROWS], start=1))

    within = [] if held is None else [ranks_before[doc] for doc in held.ids]

    listed = {hit.document.id for hit in (*before[:ROWS], *after[:ROWS])}
    deep = tuple(
        Deep(doc, grade, ranks_before.get(doc), ranks_after.get(doc), doc in shown)
        for doc, grade in grades.items()
        if grade > 0 and doc not in listed
    )
    return Case(
        dataset=dataset,
        query_id=id,
        query=beginning(task.queries[id], characters=4 * TEXT_CHARACTERS),
        before=values[0],
        after=values[1],
        rows_before=rows(before, ranks_after),
        rows_after=rows(after, ranks_before),
        rows_held=tuple(row(rank, before[rank - 1], ranks_after) for rank in within),
        deep=deep,
        held=held,
    )


def beginning(text: str, *, characters: int = TEXT_CHARACTERS) -> str:
    """How a text begins, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def _ranks(hits: Sequence[Hit]) -> dict[str, int]:
    return {hit.document.id: rank for rank, hit in enumerate(hits, start=1)}
