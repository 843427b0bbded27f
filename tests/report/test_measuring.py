"""A dataset is measured once per method; what the models cannot do is left out and said."""

from __future__ import annotations

import json

import pytest

from e2rank_rag.evaluation.report import Experiment
from e2rank_rag.evaluation.systems import Comparison
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.report.machine import this_machine
from e2rank_rag.report.measuring import (
    Plan,
    finished,
    is_word_dataset,
    measure_dataset,
    some_queries,
)
from e2rank_rag.report.page import as_html, as_record
from e2rank_rag.report.records import MEASURE
from e2rank_rag.rerankers import load_reranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.words import Bm25
from tests.kit import write_jsonl
from tests.report.conftest import QRELS, QUERIES, TEXTS
from tests.report.parts import dataset, methods


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beir") / "small"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", TEXTS), ("queries", QUERIES)):
        records = [{"_id": id, "text": text} for id, text in texts.items()]
        write_jsonl(folder / f"{name}.jsonl", records)
    lines = [f"{q}\t{d}\t{g}\n" for q, grades in QRELS.items() for d, g in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("".join(lines))
    return Experiment.read(folder, "test")


def measured(experiment, encoder, reranker=None, *, bm25=None, **options):
    plan = Plan.of(encoder, reranker, words=bm25 is not None)
    store = QdrantStore.open(":memory:", "small", bm25=bm25)
    try:
        return plan, measure_dataset(experiment, plan, encoder, store, reranker=reranker, **options)
    finally:
        store.close()


def test_the_figures_are_those_of_a_comparison(experiment, bert, store):
    plan, figures = measured(experiment, bert, bm25=Bm25())
    assert (plan.subject, plan.against) == ("listwise", "hybrid")
    assert list(figures.methods) == ["retrieve", "bm25", "hybrid", "evidence", "listwise"]
    assert list(plan.not_measured) == ["feedback", "prompt", "rerank"]
    assert (figures.documents, figures.queries, figures.judged) == (12, 3, 3)
    comparison = Comparison(bert, store, QUERIES, QRELS, measures=[MEASURE])
    for name, method in figures.methods.items():
        assert method.mean == pytest.approx(comparison.run(name).measures[MEASURE])
        assert 0 < method.median_ms <= method.slow_ms
        assert (method.difference is None) is (name == "hybrid")
    assert figures.lengths.relevant == 2.0  # three of "cats again", one of seven words
    assert figures.prompts.order.given == figures.methods["listwise"].mean


def test_a_model_with_feedback_measures_feedback_too(experiment, worded_bert):
    with Encoder.from_pretrained(worded_bert) as encoder:
        plan, figures = measured(experiment, encoder, bm25=Bm25())
        assert "feedback" in figures.methods
        report = finished([figures], plan, encoder, this_machine(encoder), without=("small",))
    assert report.without == ("small",)
    assert report.mean("listwise", without=True) is None
    assert json.loads(json.dumps(as_record(report)))["means_without"]["listwise"] is None
    assert "All datasets are left out" in as_html(report)


def test_without_words_plain_cosine_is_compared_with_and_a_reranker_is_the_subject(
    experiment, bert, tiny_rankt5
):
    with load_reranker(tiny_rankt5) as ranker:
        plan, figures = measured(experiment, bert, ranker)
    assert (plan.subject, plan.against) == ("rerank", "retrieve")
    assert list(figures.methods) == ["retrieve", "evidence", "listwise", "rerank"]
    assert plan.not_measured["bm25"] == "no words are indexed"
    assert (figures.order, figures.prompts) == (None, None)
    report = finished([figures], plan, bert, this_machine(bert), reranker="t5")
    page = as_html(report)
    assert "has no listwise prompt, so there is no depth to vary" in page
    assert "reads each document by itself" in page
    assert "No words are indexed here" in page


def test_a_model_without_a_listwise_prompt_has_evidence_as_its_subject(bert):
    recipe = bert.recipe.model_copy(
        update={"prompts": bert.recipe.prompts.model_copy(update={"listwise": None})}
    )
    with bert.with_recipe(recipe) as bare:
        plan = Plan.of(bare, None, words=True)
    assert plan.subject == "evidence"
    assert "no listwise prompt" in plan.not_measured["listwise"]


def test_some_queries_are_spread_evenly_and_keep_their_judgements(experiment):
    two = some_queries(experiment, 2)
    assert list(two.queries) == list(two.qrels) == ["q0", "q1"]
    assert two.qrels["q1"] == QRELS["q1"]
    for count in (None, 3, 9):
        assert some_queries(experiment, count) is experiment
    assert list(some_queries(experiment, 1).queries) == ["q0"]


@pytest.mark.parametrize(("bm25", "far_above"), [(0.55, True), (0.54, False), (0.2, False)])
def test_a_word_dataset_has_bm25_five_points_above_plain_cosine(bm25, far_above):
    figures = methods({"retrieve": [0.5], "bm25": [bm25], "hybrid": [0.5], "listwise": [0.5]})
    assert is_word_dataset(dataset(methods=figures)) is far_above


def test_without_bm25_no_dataset_is_a_word_dataset():
    figures = methods({"retrieve": [0.1], "listwise": [0.5]}, against="retrieve")
    assert not is_word_dataset(dataset(methods=figures))
