"""Each variant is what a reranker makes by hand of the same candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.report.records import MEASURE, Held
from e2rank_rag.report.variants import (
    ORDERS,
    Task,
    measure_variants,
    own_depth,
    reordered,
    sides,
)
from e2rank_rag.rerankers import EvidenceReranker, ListwiseReranker, load_reranker
from e2rank_rag.types import Document, Hit
from tests.report.conftest import QRELS, QUERIES


@pytest.fixture(scope="module")
def variants(task, reranker):
    return measure_variants(task, reranker)


def ndcg(rankings):
    return evaluate(run_from_rankings(rankings), QRELS, [MEASURE])[MEASURE]


def by_hand(task, reranker, order="given"):
    """The mean nDCG@10 of the candidates in another order, reranked query by query."""
    return ndcg(
        {
            id: reranker.rerank(text, reordered(task.candidates[id], order, id))
            for id, text in QUERIES.items()
        }
    )


def test_orders_are_those_of_the_candidates_by_hand(task, reranker, variants):
    assert variants.order.given == pytest.approx(by_hand(task, reranker))
    expected = [by_hand(task, reranker, order) for order in ORDERS[1:]]
    assert [*variants.order.shuffled, variants.order.reversed] == pytest.approx(expected)


def test_depths_are_those_of_rerankers_with_that_prompt(bert, task, variants):
    for depth in variants.prompts.depth:
        assert depth.mean == pytest.approx(
            by_hand(task, ListwiseReranker(bert, prompt_depth=depth.depth))
        )
    assert [each.depth for each in variants.prompts.depth if each.own] == [own_depth_of(bert)]
    assert variants.prompts.depth[0].documents == 0
    assert variants.prompts.depth[1].documents == 1


def own_depth_of(encoder):
    return encoder.recipe.listwise.depth


def test_the_prompt_held_the_first_candidates(bert, task, variants):
    for id, held in variants.prompts.held.items():
        first = [hit.document.id for hit in task.candidates[id]]
        assert list(held.ids) == first[: len(held.ids)]
        assert 0 < len(held.ids) <= own_depth_of(bert)


def test_with_feedback_the_order_of_the_candidates_changes_nothing(task, worded_bert, store):
    with load_reranker(worded_bert) as worded:
        reranked = {id: worded.rerank(QUERIES[id], hits) for id, hits in task.candidates.items()}
        found = measure_variants(replace(task, reranked=reranked), worded)
        assert found.order.spread == 0.0
        for id, held in found.prompts.held.items():
            assert set(held.ids) <= {hit.document.id for hit in task.candidates[id]}


def test_other_rerankers_have_no_prompt(bert, task, tiny_rankt5):
    evidence = EvidenceReranker(bert)
    reranked = {id: evidence.rerank(QUERIES[id], hits) for id, hits in task.candidates.items()}
    without_prompt = measure_variants(replace(task, reranked=reranked), evidence)
    assert without_prompt.prompts is None
    assert without_prompt.order.spread == 0.0
    with load_reranker(tiny_rankt5) as cross_encoder:
        assert measure_variants(task, cross_encoder) == (None, None)
        assert own_depth(cross_encoder) is None


def test_the_depth_is_the_rerankers_own(bert):
    assert own_depth(ListwiseReranker(bert, prompt_depth=7)) == 7
    assert own_depth(ListwiseReranker(bert)) == own_depth_of(bert)


def hits(*ids):
    return [Hit(Document(id, f"text of {id}"), 0.0) for id in ids]


def test_the_parts_are_lists_of_their_own(store):
    ids = ["a", "b", "c", "d"]
    task = Task(
        store,
        queries={"q": "q", "r": "r"},
        qrels={"q": {"b": 1, "d": 1, "gone": 1}, "r": {"c": 1}},
        candidates={"q": hits(*ids), "r": hits(*ids)},
        reranked={"q": hits("b", "a", "c", "d"), "r": hits("c", "a", "b", "d")},
    )
    held = {id: Held(("a", "b"), 0, 10) for id in task.queries}
    inside, outside = sides(task, held)
    second = 0.6309297535714575  # 1 / log2(3)
    assert (inside.queries, inside.relevant) == (1, 1)
    assert (inside.before, inside.after) == pytest.approx((second, 1.0))
    assert (inside.rank_before, inside.rank_after) == (2, 1)
    assert (outside.queries, outside.relevant) == (2, 2)
    assert (outside.before, outside.after) == pytest.approx(((second + 1) / 2, (second + 1) / 2))
    assert (outside.rank_before, outside.rank_after) == ((4 + 3) / 2, (4 + 1) / 2)
    nothing, _ = sides(replace(task, qrels={"q": {"d": 1}, "r": {"a": 0}}), held)
    assert (nothing.queries, nothing.difference) == (0, None)


def test_equal_texts_in_a_prompt_are_two_documents(bert, store):
    same = [Hit(Document(id, "cats again"), 0.0) for id in ("d0", "x")]
    lists = {"q": same}
    task = Task(store, {"q": "cats"}, {"q": {"d0": 1}}, lists, lists)
    found = measure_variants(task, ListwiseReranker(bert))
    assert sorted(found.prompts.held["q"].ids) == ["d0", "x"]


def test_an_order_holds_the_same_items_and_is_always_the_same():
    items = hits(*map(str, range(20)))
    for order in ORDERS:
        first, again = (reordered(items, order, "q") for _ in range(2))
        assert first == again
        assert sorted(hit.document.id for hit in first) == sorted(hit.document.id for hit in items)
    assert reordered(items, "reversed", "q") == items[::-1]
    assert reordered(items, "shuffled 1", "q") != reordered(items, "shuffled 2", "q")
