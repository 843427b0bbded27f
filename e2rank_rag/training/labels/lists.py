"""Lists ordered by a teacher: training data for a ranking, in a file that `read_examples` reads.

    teacher = ChatTeacher("http://localhost:8000/v1", "Qwen/Qwen3-32B", terms="Apache-2.0")
    report = await label_lists(read_examples("lists.jsonl"), teacher, "labelled.jsonl")

Each line holds the teacher and its terms (`teacher`), the fields of the list (`query`, `ids`,
`documents`, `labels`, `task`) and the teacher's order (`ranking`, from 1, best first). Lines are
appended as answers come. The next call with the same file labels only the lists that it lacks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from e2rank_rag.progress import ProgressReport
from e2rank_rag.training.labels.output import labelled_keys, labelled_line, list_key
from e2rank_rag.training.labels.teacher import Judgement, Teacher, TeacherError
from e2rank_rag.training.relevance import judgements, leading_places, without_query
from e2rank_rag.types import RankingExample

DROPPED_IN_A_ROW = 20
"""After so many the teacher or a setting is wrong, and answers cost money."""


@dataclass
class LabelReport:
    """Counts of lists, kept up to date while labelling goes on.

    labelled: by this call; before: were in the file; repeated: equal to another list; left: beyond
    the limit. dropped: lists by problem; said: the first answer with each problem.
    The token counts and `unmetered` are sums over all judgements, `cut` over the labelled lists.
    progress: show a progress bar.
    """

    progress: bool = field(default=False, compare=False)
    labelled: int = 0
    before: int = 0
    repeated: int = 0
    left: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0

    def add(self, judgement: Judgement) -> None:
        """Count one judgement, with its tokens and its problem."""
        self.prompt_tokens += judgement.prompt_tokens
        self.completion_tokens += judgement.completion_tokens
        self.unmetered += judgement.unmetered
        if judgement.problem:
            self.dropped[judgement.problem] += 1
            self.said.setdefault(judgement.problem, judgement.said)
        else:
            self.labelled += 1
            self.cut += judgement.cut


async def label_lists(
    examples: Sequence[RankingExample],
    teacher: Teacher,
    output: str | Path,
    *,
    list_size: int = 16,
    concurrency: int = 8,
    limit: int | None = None,
    report: LabelReport | None = None,
) -> LabelReport:
    """Ask a teacher for the order of each list that `output` does not hold yet.

    list_size: documents per list, at least 2; see `chosen_places`.
    concurrency: how many lists are asked for at a time. limit: label at most so many lists.
    report: filled while labelling goes on, so that it can be read after an interruption.

    Raises:
        TeacherError: the teacher cannot go on, or `DROPPED_IN_A_ROW` lists in a row were dropped.
            The lists that were labelled before are in the file.
        ValueError: `output` holds another teacher's lines, or other lists.
    """
    report = LabelReport() if report is None else report
    path = Path(output)
    _check_at_least(2, list_size=list_size)
    _check_at_least(1, concurrency=concurrency, limit=limit)
    if path.suffix == ".gz":
        raise ValueError(
            f"{path}: lines are appended one by one; write .jsonl and compress it later"
        )
    lists = {list_key(each.query, each.documents): each for each in _shortened(examples, list_size)}
    done = labelled_keys(path, teacher.record, lists.keys(), list_size)
    pending = [each for key, each in lists.items() if key not in done]
    several = [each for each in pending if len(each.documents) > 1]
    for _ in range(len(pending) - len(several)):
        report.add(Judgement(problem="fewer than 2 documents"))
    asked = several[:limit]
    report.before = len(done)
    report.repeated = len(examples) - len(lists)
    report.left = len(several) - len(asked)
    with (
        path.open("a", encoding="utf-8", newline="\n") as stream,
        ProgressReport("labelling", total=len(asked), shown=report.progress) as shown,
    ):
        await _Run(teacher, stream, report, shown).ask(asked, concurrency)
    return report


def chosen_places(labels: Sequence[float], size: int) -> list[int]:
    """The documents of a long list that a teacher gets, in the order of the list.

    Up to half are positives, the highest labels first; the rest are the first negatives. If there
    are too few negatives, positives take their places.
    """
    positives = [place for place, label in enumerate(labels) if label > 0]
    others = [place for place, label in enumerate(labels) if label <= 0]
    best_first = sorted(positives, key=lambda place: -labels[place])
    return sorted(leading_places(best_first, others, size))


@dataclass
class _Run:
    teacher: Teacher
    stream: TextIO
    report: LabelReport
    shown: ProgressReport
    dropped_in_a_row: int = 0

    async def ask(self, examples: Sequence[RankingExample], concurrency: int) -> None:
        """`concurrency` workers take lists from one iterator; the first failure ends them all."""
        waiting = iter(examples)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(examples))):
                    group.create_task(self._work(waiting))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others are of the same kind

    async def _work(self, waiting: Iterator[RankingExample]) -> None:
        for example in waiting:
            judgement = await self.teacher.order(example.query, example.documents)
            if not judgement.problem:
                self.stream.write(labelled_line(self.teacher.record, example, judgement.ranking))
                self.stream.flush()
            self.report.add(judgement)
            self._count_in_a_row(judgement)
            self.shown.advance(1)

    def _count_in_a_row(self, judgement: Judgement) -> None:
        self.dropped_in_a_row = self.dropped_in_a_row + 1 if judgement.problem else 0
        if self.dropped_in_a_row >= DROPPED_IN_A_ROW:
            raise TeacherError(
                f"{DROPPED_IN_A_ROW} lists in a row were dropped, the last one for "
                f"{judgement.problem!r}; the answer began: {judgement.said!r}"
            )


def _check_at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")


def _shortened(examples: Sequence[RankingExample], size: int) -> Iterator[RankingExample]:
    """The lists cut to `size`, with judgements as labels, or none if nobody judged. Copies of the
    query are left out, because any teacher would put them first."""
    for example in map(without_query, examples):
        judged = _judged(example)
        places = chosen_places(judged or example.labels, size)
        yield replace(
            example,
            documents=tuple(example.documents[place] for place in places),
            ids=tuple(example.ids[place] for place in places if example.ids),
            labels=tuple(judged[place] for place in places if judged),
            positive=None,
            judged=None,
        )


def _judged(example: RankingExample) -> tuple[float, ...]:
    """People's judgements. Labels 1 to n alone, however few, may be another teacher's order."""
    by_people = example.judged is not None or example.positive is not None
    if not by_people and sorted(example.labels) == list(range(1, len(example.labels) + 1)):
        return ()
    return judgements(example)
