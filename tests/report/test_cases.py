"""Which queries are shown, and what their lists say."""

from __future__ import annotations

from e2rank_rag.report.cases import beginning, pick_cases
from e2rank_rag.report.records import Deep, Held
from e2rank_rag.report.variants import Task
from e2rank_rag.types import Document, Hit


def hits(*ids):
    return [Hit(Document(id, f"text  of\n{id}"), 0.0) for id in ids]


def made(count, **changes):
    names = [f"q{n}" for n in range(count)]
    lists = {name: hits("a", "b") for name in names}
    fields = {
        "queries": {name: f"who is {name}?" for name in names},
        "qrels": {name: {"b": 1} for name in names},
        "candidates": lists,
        "reranked": lists,
    }
    return Task(store=None, **(fields | changes))


def picked(task, gains):
    before = dict.fromkeys(task.queries, 0.5)
    after = {id: 0.5 + gain for id, gain in zip(before, gains, strict=True)}
    won, lost = pick_cases("one", task, before, after, {})
    return [case.query_id for case in won], [case.query_id for case in lost]


def test_the_largest_gains_and_losses_come_first_and_ties_keep_their_order():
    assert picked(made(5), [0.1, -0.2, 0.3, 0.1, -0.4]) == (["q2", "q0", "q3"], ["q4", "q1"])


def test_at_most_ten_are_shown_and_none_that_stays_equal():
    won, lost = picked(made(14), [0.1] * 12 + [0.0] * 2)
    assert won == [f"q{n}" for n in range(10)]
    assert lost == []


def test_the_rows_say_grade_move_and_prompt():
    ids = [f"d{n}" for n in range(1, 15)]
    task = made(
        1,
        qrels={"q0": {"d1": 0, "d12": 2, "d13": 1, "gone": 1}},
        candidates={"q0": hits(*ids)},
        reranked={"q0": hits("d12", *[id for id in ids if id != "d12"])},
    )
    held = {"q0": Held(("d12", "d2"), 1, 50)}
    ((case,), _) = pick_cases("one", task, {"q0": 0.0}, {"q0": 1.0}, held)
    first, second = case.rows_after[:2]
    assert (first.rank, first.id, first.grade, first.other_rank) == (1, "d12", 2, 12)
    assert (first.shown, first.text) == (True, "text of d12")
    assert (second.rank, second.id, second.grade, second.other_rank) == (2, "d1", 0, 1)
    assert (second.shown, case.rows_before[1].shown) == (False, True)
    assert len(case.rows_before) == len(case.rows_after) == 10
    assert [(row.id, row.rank, row.other_rank) for row in case.rows_held] == [
        ("d12", 12, 1),
        ("d2", 2, 3),
    ]
    assert case.deep == (Deep("d13", 1, 13, 13, False), Deep("gone", 1, None, None, False))
    assert case.held == held["q0"]


def test_a_query_without_candidates_has_empty_lists():
    task = made(1, candidates={"q0": []}, reranked={"q0": []})
    ((case,), _) = pick_cases("one", task, {"q0": 0.0}, {"q0": 1.0}, {})
    assert (case.rows_before, case.rows_held, case.held) == ((), (), None)


def test_a_long_text_is_cut_and_says_so():
    assert beginning("a\tb\n c") == "a b c"
    assert beginning("x" * 200, characters=10) == "x" * 9 + "…"
