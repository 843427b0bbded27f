"""Lists ordered by a teacher: training data for a ranking, in a file that `read_examples` reads.

    teacher = ChatTeacher("http://localhost:8000/v1", "Qwen/Qwen3-32B", terms="Apache-2.0")
    report = await label_lists(read_examples("lists.jsonl"), teacher, "labelled.jsonl")

A line holds who labelled it and on what terms (`teacher`), what was known (`query`, `ids`,
`documents`, `labels`, `task`) and the teacher's order (`ranking`, from 1, best first). Lines are
appended as answers come; the next call goes on with the lists that are not there yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

from e2rank_rag.lines import read_raw_lines
from e2rank_rag.progress import ProgressReport
from e2rank_rag.training.examples import named
from e2rank_rag.training.relevance import judgements, leading_places, without_query
from e2rank_rag.types import RankingExample

DROPPED_IN_A_ROW = 20
"""After so many, something is wrong with the teacher or its settings, and answers cost money."""


class TeacherError(RuntimeError):
    """A teacher that cannot go on: unreachable, refusing the key, giving nothing of use."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A teacher's order of one list, or the reason why there is none.

    ranking: permutation of 1 to n, best first; empty where there is a `problem`.
    problem: a few words to count by; said: how the answer began that was of no use.
    cut: documents of which the teacher saw the beginning only.
    prompt_tokens, completion_tokens: of all answers, those of no use among them; unmetered: answers
        that came without these figures.
    """

    ranking: tuple[int, ...] = ()
    problem: str = ""
    said: str = ""
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0


class Teacher(Protocol):
    """Orders the documents of a query."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Written into every line: model, terms, settings; JSON values."""
        ...

    @property
    def limit(self) -> str:
        """How much of a document is read, in words for people."""
        ...

    async def order(self, query: str, documents: Sequence[str]) -> Judgement:
        """TeacherError where asking for other lists makes no sense either."""
        ...

    async def aclose(self) -> None: ...


@dataclass
class LabelReport:
    """What became of the lists, counted as it happens.

    labelled: in this run; before: in the file already; repeated: equal to another list; left: not
    asked for, by the limit. dropped: lists by problem; said: the first answer with each problem.
    The other fields are sums over `Judgement`, `cut` over the labelled lists only.
    """

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
    progress: bool = False,
) -> LabelReport:
    """Ask a teacher for the order of each list that `output` does not hold yet.

    list_size: documents per list, see `chosen_places`. concurrency: lists asked for at a time.
    limit: ask for at most so many lists now.
    report: filled while it goes on, so that it can be read after an interruption too.

    Raises:
        TeacherError: the teacher cannot go on, or dropped `DROPPED_IN_A_ROW` lists in a row. What
            was labelled is in the file.
        ValueError: `output` holds lines of another teacher, or of other lists.
    """
    report = LabelReport() if report is None else report
    path = Path(output)
    _check_at_least(2, list_size=list_size)
    _check_at_least(1, concurrency=concurrency, limit=limit)
    if path.suffix == ".gz":
        raise ValueError(f"{path}: lines are appended as they come; write .jsonl, compress it then")
    lists = {_key(each.query, each.documents): each for each in _shortened(examples, list_size)}
    done = _done(path, teacher.record, lists, list_size)
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
        ProgressReport("labelling", total=len(asked), shown=progress) as shown,
    ):
        await _Run(teacher, stream, report, shown).ask(asked, concurrency)
    return report


def chosen_places(labels: Sequence[float], size: int) -> list[int]:
    """Which documents of a long list a teacher orders, in the order of the list.

    Up to half are positives, the highest labels first; the rest are the first others. Where others
    are too few, positives take their places.
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
        """So many workers share what is waiting; the first failure ends them all."""
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
                self.stream.write(_line(self.teacher.record, example, judgement.ranking))
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
    """With what people judged as labels; `labels` is empty where nobody did. Without the query
    itself, which any teacher would put first."""
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
    """What people said; labels of 1 to n alone, however few, may be an earlier teacher's order."""
    stated = example.judged is not None or example.positive is not None
    if not stated and sorted(example.labels) == list(range(1, len(example.labels) + 1)):
        return ()
    return judgements(example)


def _line(record: Mapping[str, Any], example: RankingExample, ranking: Sequence[int]) -> str:
    count = len(example.documents)
    if sorted(ranking) != list(range(1, count + 1)):
        raise ValueError(f"the teacher's ranking {ranking} is no permutation of 1 to {count}")
    line: dict[str, Any] = {"teacher": dict(record), "query": example.query}
    if example.ids:
        line["ids"] = example.ids
    line["documents"] = example.documents
    if example.labels:
        line["labels"] = example.labels
    line["ranking"] = ranking
    line |= named(example)
    return json.dumps(line, ensure_ascii=False) + "\n"


def _key(query: str, documents: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps([query, *documents]).encode()).digest()


def _done(
    path: Path,
    record: Mapping[str, Any],
    lists: Mapping[bytes, RankingExample],
    list_size: int,
) -> set[bytes]:
    """The keys of the lists in the file. An unfinished last line of this teacher is taken off."""
    if not path.exists():
        return set()
    start = json.dumps({"teacher": dict(record)}, ensure_ascii=False)[:-1].encode()
    done = set()
    whole = 0
    for number, line in read_raw_lines(path):
        if not line.endswith(b"\n") and (line.startswith(start) or start.startswith(line)):
            break  # the run was killed while it wrote
        try:
            key = _key_of_line(line, record)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if key not in lists:
            raise ValueError(
                f"{path}, line {number}: this list is not among those to label, cut to "
                f"list_size {list_size}; name another file, or the same lists and size"
            )
        done.add(key)
        whole += len(line)
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return done


def _key_of_line(line: bytes, record: Mapping[str, Any]) -> bytes:
    another = "name another file for the labels"
    try:
        known = json.loads(line)
        query, documents, teacher = known["query"], known["documents"], known["teacher"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no list that a teacher labelled ({error!r}); {another}") from error
    if teacher != record:
        raise ValueError(
            f"labelled by {teacher}, and the teacher is {dict(record)} now; {another}, or the same "
            "teacher and settings"
        )
    return _key(query, documents)
