"""Figures by hand, by an independent nDCG, and what the edges count as."""

import random
from math import log2

import pytest

from e2rank_rag.evaluation.metrics import evaluate, evaluate_by_query
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.types import Document, Hit


def run_of(**rankings):
    """A run from rankings written as strings of one-letter documents."""
    return {q: {d: float(-i) for i, d in enumerate(ids)} for q, ids in rankings.items()}


def ndcg(ranking, grades, cutoff):
    def dcg(gains):
        return sum(gain / log2(rank + 1) for rank, gain in enumerate(gains[:cutoff], start=1))

    ideal = dcg(sorted((max(g, 0) for g in grades.values()), reverse=True))
    return dcg([max(grades.get(d, 0), 0) for d in ranking]) / ideal if ideal else 0.0


def test_ndcg_gains_are_the_grades_themselves():
    qrels = {"q": {"a": 3, "b": 1}}
    expected = (1 + 3 / log2(3)) / (3 + 1 / log2(3))
    assert evaluate(run_of(q="ba"), qrels, ["nDCG@10"])["nDCG@10"] == pytest.approx(expected)


def test_exponential_gains_can_be_asked_for():
    name = "nDCG(gains={0:0,1:1,2:3,3:7})@10"
    expected = (1 + 7 / log2(3)) / (7 + 1 / log2(3))
    values = evaluate(run_of(q="ba"), {"q": {"a": 3, "b": 1}}, [name])
    assert values[name] == pytest.approx(expected)


def test_reciprocal_rank_stops_at_ten():
    qrels = {"q": {"x": 1}}
    assert evaluate(run_of(q="abx"), qrels, ["RR@10"])["RR@10"] == pytest.approx(1 / 3)
    assert evaluate(run_of(q="abcdefghijx"), qrels, ["RR@10"])["RR@10"] == 0


def test_recall_is_the_part_of_the_relevant_that_was_found():
    assert evaluate(run_of(q="abx"), {"q": {"a": 1, "x": 2, "y": 1}}, ["R@2"])["R@2"] == 1 / 3


@pytest.mark.parametrize("grade", [0, -1, -7])
def test_grades_below_one_are_not_relevant(grade):
    qrels = {"q": {"a": grade, "b": 1}}
    values = evaluate(run_of(q="ab"), qrels)
    assert values == pytest.approx({"nDCG@10": 1 / log2(3), "R@100": 1.0, "RR@10": 1 / 2})


def test_agrees_with_an_independent_ndcg_on_random_runs():
    random.seed(7)
    docs = [str(i) for i in range(60)]
    qrels = {q: {d: random.randint(-1, 3) for d in random.sample(docs, 25)} for q in "abcdefgh"}
    rankings = {q: random.sample(docs, random.randint(1, 60)) for q in qrels}
    run = {q: {d: -float(i) for i, d in enumerate(ids)} for q, ids in rankings.items()}
    for cutoff in (1, 5, 10, 100):
        name = f"nDCG@{cutoff}"
        for query, values in evaluate_by_query(run, qrels, [name]).items():
            assert values[name] == pytest.approx(ndcg(rankings[query], qrels[query], cutoff))


@pytest.mark.parametrize("name", ["nDCG@10", "R@100", "RR@10", "AP", "P@1", "Judged@10", "Bpref"])
@pytest.mark.parametrize("missing", [{}, {"q2": {}}])
def test_a_query_missing_from_the_run_counts_as_zero(name, missing):
    run = {**run_of(q1="a"), **missing}
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
    whole = evaluate(run, {"q1": {"a": 1}}, [name])[name]
    assert evaluate_by_query(run, qrels, [name])["q2"] == {name: 0.0}
    assert evaluate(run, qrels, [name])[name] == whole / 2


def test_a_query_without_relevant_documents_counts_as_zero():
    qrels = {"q": {"a": 1}, "none": {"a": 0}, "empty": {}}
    values = evaluate(run_of(q="a", none="a", empty="a"), qrels)
    assert values == pytest.approx(dict.fromkeys(values, 1 / 3))


def test_queries_of_the_run_without_judgements_are_ignored():
    run = run_of(q="a", other="xyz")
    assert list(evaluate_by_query(run, {"q": {"a": 1}})) == ["q"]
    assert evaluate(run, {"q": {"a": 1}})["RR@10"] == 1


def test_an_empty_run_is_zero_throughout():
    assert set(evaluate({}, {"q": {"a": 1}}).values()) == {0.0}


@pytest.mark.parametrize("order", ["abc", "cba", "bac"])
@pytest.mark.parametrize("name", ["nDCG@1", "RR", "RR@10", "AP", "P@1"])
def test_ties_keep_the_order_of_the_run(order, name):
    run = {"q": dict.fromkeys(order, 0.5)}
    first = evaluate(run, {"q": {order[0]: 1}}, [name])[name]
    last = evaluate(run, {"q": {order[2]: 1}}, [name])[name]
    assert first == 1
    assert last < 1


@pytest.mark.parametrize(("best", "other"), [("a", "b"), ("b", "a")])
def test_scores_that_differ_beyond_32_bits_are_no_ties(best, other):
    run = {"q": {other: 0.8, best: 0.8 + 1e-12}}
    assert evaluate(run, {"q": {best: 1}}, ["nDCG@1"]) == {"nDCG@1": 1.0}


def test_a_ranking_whose_scores_disagree_is_measured_by_its_order():
    hits = [Hit(Document(d, d), score) for d, score in (("a", 0.1), ("b", 0.9), ("c", 0.1))]
    run = run_from_rankings({"q": hits})
    assert evaluate(run, {"q": {"a": 1}}, ["RR@10"]) == {"RR@10": 1.0}
    assert evaluate(run, {"q": {"c": 1}}, ["RR@10"]) == {"RR@10": pytest.approx(1 / 3)}


def test_infinite_scores_are_ordered():
    run = {"q": {"a": float("-inf"), "b": 0.0, "c": float("inf")}}
    assert evaluate(run, {"q": {"a": 1}}, ["RR@10"])["RR@10"] == pytest.approx(1 / 3)


def test_values_come_under_the_names_asked_for():
    values = evaluate(run_of(q="xa"), {"q": {"a": 1}}, ["NDCG@10", "MRR", "nDCG@10"])
    assert list(values) == ["NDCG@10", "MRR", "nDCG@10"]
    assert values["NDCG@10"] == values["nDCG@10"]


def test_inputs_are_not_changed():
    run, qrels = run_of(q="ab", r=""), {"q": {"a": -1, "b": 1}}
    evaluate(run, qrels)
    assert run == run_of(q="ab", r="")
    assert qrels == {"q": {"a": -1, "b": 1}}


def test_empty_qrels_are_refused():
    with pytest.raises(ValueError, match="the qrels are empty"):
        evaluate(run_of(q="a"), {})


def test_a_nan_score_is_refused_by_name():
    with pytest.raises(ValueError, match="document 'b' for query 'q' is NaN"):
        evaluate({"q": {"a": 1.0, "b": float("nan")}}, {"q": {"a": 1}})


@pytest.mark.parametrize("grade", [0.5, "1", None, 10**12])
def test_a_grade_that_is_no_sane_whole_number_is_refused(grade):
    with pytest.raises(ValueError, match=r"grade of document 'a' for query 'q' .* got"):
        evaluate(run_of(q="a"), {"q": {"a": grade}})


# The first four would end the process, and the fifth start Perl, if they got through.
@pytest.mark.parametrize(
    "name",
    [
        "nDCG@0", "P@0", "R@0", "AP@0", "ERR@10", "nDCG@-1", "nDCG@2.5", "nDCG@True", "R",
        "R(rel=0)@10", "nDCG@10000000000", "nDCG(gains={1:-3})@10", "nDCG(gains={1:0.5})@10",
        "nDCG(no=1)@10", "NumRel", "alpha_nDCG@10", "nope", "", "nDCG@", "nDCG@10; 1", "\0",
    ],
)  # fmt: skip
def test_an_unknown_measure_is_refused_with_those_accepted(name):
    with pytest.raises(ValueError, match=r"(?s)unknown measure .*accepted: AP, .*such as nDCG@10"):
        evaluate(run_of(q="a"), {"q": {"a": 1}}, ["RR@10", name])


@pytest.mark.parametrize("measures", ["nDCG@10", []])
def test_measures_must_be_a_list_of_names(measures):
    with pytest.raises(ValueError, match="measures must be a list of names"):
        evaluate(run_of(q="a"), {"q": {"a": 1}}, measures)
