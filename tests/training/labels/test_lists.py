"""What a teacher said is in the file, once per list, and a stopped run goes on."""

from __future__ import annotations

import asyncio
import json

import pytest

from e2rank_rag.training.examples import read_examples, write_examples
from e2rank_rag.training.labels import lists
from e2rank_rag.training.labels.chat import ChatTeacher
from e2rank_rag.training.labels.lists import LabelReport, chosen_places, label_lists
from e2rank_rag.training.labels.teacher import Judgement, TeacherError
from e2rank_rag.types import RankingExample
from tests.chat_server import ChatServer, said


class RuleTeacher:
    """Orders by the number that each document begins with, the largest first."""

    def __init__(self, *, model="rule", cut=0, problems=(), delay_s=0.0):
        self.record = {"model": model, "terms": "CC0"}
        self.limit = "all"
        self.asked = []
        self.cut, self.problems, self.delay_s = cut, set(problems), delay_s
        self.now = self.most_at_once = 0

    async def order(self, query, documents):
        self.asked.append(query)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        await asyncio.sleep(self.delay_s)
        self.now -= 1
        if query in self.problems:
            return Judgement(problem="bad day", said=f"not {query}", cut=9, prompt_tokens=1)
        places = sorted(range(len(documents)), key=lambda p: -int(documents[p].split()[0]))
        return Judgement(tuple(p + 1 for p in places), cut=self.cut, prompt_tokens=10)

    async def aclose(self):
        pass


def example(query, *worth, labels=None, **fields):
    documents = tuple(f"{value} of {query}" for value in worth)
    return RankingExample(
        query, documents, tuple(labels or (1.0, *[0.0] * (len(worth) - 1))), **fields
    )


def examples(count):
    return [example(f"q{n}", n, n + 2, n + 1) for n in range(count)]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The file


async def test_a_line_holds_the_teacher_what_was_known_and_the_order(tmp_path):
    given = example("qü", 1, 3, 2, labels=(1.0, 0.0, 2.5), ids=("a", "b", "c"), task="web")
    output = tmp_path / "out.jsonl"
    await label_lists([given], RuleTeacher(), output)
    assert output.read_text(encoding="utf-8").startswith('{"teacher": {"model": "rule", "terms":')
    assert lines(output) == [
        {
            "teacher": {"model": "rule", "terms": "CC0"},
            "query": "qü",
            "ids": ["a", "b", "c"],
            "documents": ["1 of qü", "3 of qü", "2 of qü"],
            "labels": [1.0, 0.0, 2.5],
            "ranking": [2, 3, 1],
            "task": "web",
        }
    ]
    (read,) = read_examples(output)
    assert read.labels == (1.0, 3.0, 2.0)
    assert read.positive == 2
    assert (read.documents, read.ids, read.task) == (given.documents, given.ids, "web")


async def test_ids_and_task_are_left_out_where_nobody_gave_them(tmp_path):
    await label_lists([example("q", 1, 2)], RuleTeacher(), tmp_path / "out.jsonl")
    assert list(lines(tmp_path / "out.jsonl")[0]) == [
        "teacher",
        "query",
        "documents",
        "labels",
        "ranking",
    ]


async def test_a_list_that_had_a_teacher_keeps_its_known_positive_and_not_the_old_order(tmp_path):
    known = example("known", 1, 3, 2, labels=(2.0, 1.0, 3.0), positive=1)
    order = example("order", 1, 3, 2, labels=(2.0, 1.0, 3.0))
    await label_lists([known, order], RuleTeacher(), tmp_path / "out.jsonl")
    first, second = lines(tmp_path / "out.jsonl")
    assert (first["labels"], first["ranking"]) == ([0.0, 1.0, 0.0], [2, 3, 1])
    assert "labels" not in second
    assert [each.positive for each in read_examples(tmp_path / "out.jsonl")] == [1, None]


async def test_a_long_list_is_labelled_in_part_with_labels_and_ids_to_match(tmp_path):
    given = example("q", *range(10), labels=(0,) * 9 + (1,), ids=tuple("abcdefghij"))
    await label_lists([given], RuleTeacher(), tmp_path / "out.jsonl", list_size=3)
    (line,) = lines(tmp_path / "out.jsonl")
    assert line["ids"] == ["a", "b", "j"]
    assert line["documents"] == ["0 of q", "1 of q", "9 of q"]
    assert (line["labels"], line["ranking"]) == ([0, 0, 1], [3, 2, 1])


@pytest.mark.parametrize(
    ("labels", "size", "places"),
    [
        ([0, 1, 0, 0], 4, [0, 1, 2, 3]),
        ([0, 0, 0, 0, 1], 2, [0, 4]),
        ([0, 0, 0, 0, 1, 2], 4, [0, 1, 4, 5]),
        ([0, 0, 0, 1, 1, 2], 2, [0, 5]),
        ([1, 1, 1, 1, 0, 0, 0], 4, [0, 1, 4, 5]),
        ([1, 2, 1, 3, 0], 4, [0, 1, 3, 4]),
        ([1, 3, 2], 2, [1, 2]),
        ([1, 0, -1, 0], 3, [0, 1, 2]),
    ],
)
def test_half_a_list_may_be_positives_and_the_nearest_others_fill_it(labels, size, places):
    assert chosen_places(labels, size) == places


async def test_labels_come_through_a_real_server_as_they_were(tmp_path):
    write_examples(tmp_path / "in.jsonl", examples(5))
    with ChatServer() as server:
        teacher = ChatTeacher(server.url, "m", terms="https://terms")
        report = await label_lists(read_examples(tmp_path / "in.jsonl"), teacher, tmp_path / "out")
        await teacher.aclose()
    assert (report.labelled, report.prompt_tokens, report.completion_tokens) == (5, 500, 50)
    for line in lines(tmp_path / "out"):
        assert (line["labels"], line["ranking"]) == ([1, 0, 0], [2, 3, 1])
        assert line["teacher"]["terms"] == "https://terms"


# Counting


async def test_everything_is_counted(tmp_path):
    teacher = RuleTeacher(cut=2, problems=("q1", "q3"))
    given = [*examples(6), examples(1)[0], example("short", 1)]
    report = await label_lists(given, teacher, tmp_path / "out.jsonl", limit=5)
    assert report == LabelReport(
        labelled=3,
        repeated=1,
        left=1,
        dropped={"bad day": 2, "fewer than 2 documents": 1},
        said={"bad day": "not q1", "fewer than 2 documents": ""},
        cut=6,
        prompt_tokens=32,
    )
    assert "short" not in teacher.asked
    assert [line["query"] for line in lines(tmp_path / "out.jsonl")] == ["q0", "q2", "q4"]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_more_lists_are_asked_for_at_a_time_than_allowed(tmp_path, concurrency):
    teacher = RuleTeacher(delay_s=0.005)
    await label_lists(examples(10), teacher, tmp_path / "out", concurrency=concurrency)
    assert teacher.most_at_once == concurrency


async def test_a_server_sees_no_more_requests_at_a_time_than_allowed(tmp_path):
    with ChatServer(delay_s=0.05) as server:
        teacher = ChatTeacher(server.url, "m", terms="CC0")
        await label_lists(examples(12), teacher, tmp_path / "out", concurrency=4)
        await teacher.aclose()
    assert server.most_at_once == 4


# Going on


async def test_a_second_run_asks_only_for_what_is_not_there(tmp_path):
    output = tmp_path / "out.jsonl"
    await label_lists(examples(3), RuleTeacher(problems=["q1"]), output)
    teacher = RuleTeacher()
    report = await label_lists(examples(5), teacher, output)
    assert sorted(teacher.asked) == ["q1", "q3", "q4"]
    assert (report.before, report.labelled) == (2, 3)
    assert sorted(line["query"] for line in lines(output)) == ["q0", "q1", "q2", "q3", "q4"]
    third = RuleTeacher()
    assert (await label_lists(examples(5), third, output)).labelled == 0
    assert third.asked == []


async def test_the_same_query_over_other_documents_is_another_list(tmp_path):
    given = [example("q", 1, 2), example("q", 1, 3)]
    await label_lists(given, RuleTeacher(), tmp_path / "out.jsonl")
    assert len(lines(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize("cut", [1, 5, 60, -1])
async def test_a_line_that_a_killed_run_left_unfinished_is_asked_for_again(tmp_path, cut):
    output = tmp_path / "out.jsonl"
    await label_lists(examples(2), RuleTeacher(), output, concurrency=1)
    whole = output.read_bytes()
    first, second = whole.splitlines(keepends=True)
    output.write_bytes(first + second[:cut])
    report = await label_lists(examples(2), RuleTeacher(), output)
    assert (report.before, report.labelled) == (1, 1)
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"query": "q", "documents": ["a"]}\n', r"line 1: not a list .*'te"),
        (b'{"query": "q", "documents": ["a"]}', "line 1: not a list that a teacher labelled"),
        (b"notes, not data", "line 1: not a list that a teacher labelled"),
        (b"[]\n", "line 1: not a list that a teacher labelled"),
        (b"\xff\n", "line 1: not a list that a teacher labelled"),
        (b"[" * 100_000, "line 1: not a list that a teacher labelled"),
    ],
)
async def test_a_file_of_something_else_is_refused_and_stays_as_it_was(tmp_path, line, message):
    output = tmp_path / "out.jsonl"
    output.write_bytes(line)
    with pytest.raises(ValueError, match=f"out.jsonl, {message}"):
        await label_lists(examples(1), RuleTeacher(), output)
    assert output.read_bytes() == line


async def test_a_line_of_an_earlier_run_has_the_limit(tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    await label_lists(examples(1), RuleTeacher(), output)
    monkeypatch.setattr("e2rank_rag.lines.LINE_BYTES", 20)
    with pytest.raises(ValueError, match=r"out\.jsonl, line 1: more than 20 bytes"):
        await label_lists(examples(1), RuleTeacher(), output)


async def test_the_labels_of_two_teachers_do_not_mix(tmp_path):
    output = tmp_path / "out.jsonl"
    await label_lists(examples(1), RuleTeacher(), output)
    with pytest.raises(ValueError, match=r"line 1: labelled by .*'rule'.*'other'.* name another"):
        await label_lists(examples(1), RuleTeacher(model="other"), output)


async def test_lists_of_another_size_or_source_do_not_mix(tmp_path):
    output = tmp_path / "out.jsonl"
    await label_lists(examples(1), RuleTeacher(), output)
    with pytest.raises(ValueError, match=r"line 1: this list is not among .* list_size 2; name"):
        await label_lists(examples(1), RuleTeacher(), output, list_size=2)


async def test_a_compressed_output_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"out.jsonl.gz: .*write .jsonl"):
        await label_lists(examples(1), RuleTeacher(), tmp_path / "out.jsonl.gz")


@pytest.mark.parametrize("options", [{"list_size": 1}, {"concurrency": 0}, {"limit": 0}])
async def test_sizes_that_cannot_be_meant_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is . ?; it must be at least"):
        await label_lists(examples(1), RuleTeacher(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# Ending early


async def test_many_dropped_lists_in_a_row_end_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "DROPPED_IN_A_ROW", 3)
    teacher = RuleTeacher(problems=("q0", "q1", "q3", "q4", "q5"))
    report = LabelReport()
    with pytest.raises(TeacherError, match=r"3 lists in a row .*'bad day'.*began: 'not q5'"):
        await label_lists(examples(9), teacher, tmp_path / "out", concurrency=1, report=report)
    assert teacher.asked == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert (report.labelled, report.dropped["bad day"]) == (1, 5)


async def test_a_teacher_that_cannot_go_on_ends_all_and_what_was_labelled_stays(tmp_path):
    def answer(asked):
        return said(asked.best) if asked.number <= 4 else (401, {"error": "expired"}, {})

    with ChatServer(answer) as server:
        teacher = ChatTeacher(server.url, "m", terms="CC0")
        with pytest.raises(TeacherError, match=r"status 401: .*expired"):
            await label_lists(examples(20), teacher, tmp_path / "out", concurrency=2)
        await teacher.aclose()
    assert 3 <= len(lines(tmp_path / "out")) <= 4
    assert len(server.asked) <= 6


async def test_a_cancelled_run_leaves_whole_lines(tmp_path):
    teacher = RuleTeacher(delay_s=0.01)
    report = LabelReport()
    run = asyncio.create_task(
        label_lists(examples(50), teacher, tmp_path / "out", concurrency=2, report=report)
    )
    while report.labelled < 5:
        await asyncio.sleep(0.001)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert len(lines(tmp_path / "out")) == report.labelled < 50


async def test_a_ranking_that_is_no_permutation_is_never_written(tmp_path):
    class Wrong(RuleTeacher):
        async def order(self, query, documents):
            return Judgement((1, 1, 2))

    with pytest.raises(ValueError, match="no permutation of 1 to 3"):
        await label_lists(examples(1), Wrong(), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b""
