"""A chat model judges the first documents of several methods, pooled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing

from e2rank_rag.progress import ProgressReport
from e2rank_rag.training.labels.teacher import Teacher
from e2rank_rag.types import Hit

POOLED = 5
"""Documents of each method that are judged: the measure reads no further."""

CONCURRENT = 8

Rankings = Mapping[str, Sequence[Hit]]


def pools(rankings: Sequence[Rankings]) -> dict[str, dict[str, str]]:
    """query id -> document id -> text: the first `POOLED` documents of every ranking."""
    return {
        query: {
            hit.document.id: hit.document.text
            for ranking in rankings
            for hit in ranking[query][:POOLED]
        }
        for query in rankings[0]
    }


async def judged(
    teacher: Teacher,
    queries: Mapping[str, str],
    pooled: Mapping[str, Mapping[str, str]],
    *,
    progress: bool = False,
) -> dict[str, dict[str, int]]:
    """query id -> document id -> grade: the judge's best document has `POOLED`, the next one less.

    A query whose documents the judge did not order is left out, and so is one with fewer than two.
    TeacherError if the judge cannot be asked at all.
    """
    slots = asyncio.Semaphore(CONCURRENT)
    asked = {query: documents for query, documents in pooled.items() if len(documents) > 1}
    with ProgressReport("judging", total=len(asked), shown=progress) as shown:

        async def grades(query: str) -> tuple[str, dict[str, int]]:
            ids, texts = list(asked[query]), list(asked[query].values())
            async with slots:
                answer = await teacher.order(queries[query], texts)
            shown.advance(1)
            best = [ids[place - 1] for place in answer.ranking]
            return query, {id: max(POOLED - rank, 0) for rank, id in enumerate(best)}

        try:
            async with aclosing(teacher), asyncio.TaskGroup() as group:
                tasks = [group.create_task(grades(query)) for query in asked]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others are of the same kind
    return {query: found for query, found in (task.result() for task in tasks) if found}
