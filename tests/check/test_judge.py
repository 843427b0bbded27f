"""A judge orders the first documents of all methods together, and its best five count."""

from __future__ import annotations

import asyncio

import pytest

from e2rank_rag.check.judge import judged, pools
from e2rank_rag.training.labels.chat import ChatTeacher
from e2rank_rag.training.labels.teacher import TeacherError
from e2rank_rag.types import Document, Hit
from tests.chat_server import ChatServer, by_rule, said

QUERIES = {"q1": "which is largest?", "q2": "and here?"}


def hits(*numbers):
    return [Hit(Document(f"d{n}", f"{n} is a number"), 1.0) for n in numbers]


def answers(rule=by_rule, queries=QUERIES, pooled=None):
    pooled = pooled or {q: {f"d{n}": f"{n} is a number" for n in range(1, 8)} for q in queries}
    with ChatServer(rule) as server:
        teacher = ChatTeacher(server.url, "m", terms="none", attempts=1)
        return asyncio.run(judged(teacher, queries, pooled)), server.asked


def test_the_first_five_of_every_method_are_pooled_each_once():
    one = {"q": hits(1, 2, 3, 4, 5, 6)}
    other = {"q": hits(9, 1, 2, 3, 4, 5)}
    assert list(pools([one, other])["q"]) == ["d1", "d2", "d3", "d4", "d5", "d9"]


def test_the_judges_best_has_five_and_the_sixth_nothing():
    grades, asked = answers()
    assert grades["q1"] == {"d7": 5, "d6": 4, "d5": 3, "d4": 2, "d3": 1, "d2": 0, "d1": 0}
    assert len(asked) == 2


def test_a_query_that_the_judge_does_not_order_is_left_out():
    def rule(asked):
        return said("no") if asked.query == "and here?" else by_rule(asked)

    grades, _ = answers(rule)
    assert list(grades) == ["q1"]


def test_a_query_with_one_document_is_not_asked():
    grades, asked = answers(pooled={"q1": {"d1": "1 a"}, "q2": {"d1": "1 a", "d2": "2 b"}})
    assert (list(grades), len(asked)) == (["q2"], 1)


def test_a_judge_that_cannot_be_asked_is_an_error():
    with pytest.raises(TeacherError, match="401"):
        answers(lambda asked: (401, {"error": "no key"}, {}))
