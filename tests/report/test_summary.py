"""The sentences say what the figures say, in favour of reranking and against it."""

from __future__ import annotations

import pytest

from e2rank_rag.report.records import Depth
from e2rank_rag.report.summary import (
    LABELS,
    MEANINGS,
    compare,
    mean_differences,
    methods_of,
    summarise,
)
from tests.report.parts import dataset, methods, prompts, report

# Few, so that every sign pattern is counted; the field `queries` says what the page would.
HYBRID = [0.1 * (n % 10) for n in range(10)]


def moved(by):
    return [value + by for value in HYBRID]


def made(listwise, *, evidence=None, name="one", **changes):
    values = {"hybrid": HYBRID, "evidence": evidence or HYBRID, "listwise": listwise}
    figures = methods(values, times={"hybrid": 8.0, "listwise": 31.6})
    return dataset(name, methods=figures, queries=60, judged=60, **changes)


def said(*datasets, **changes):
    return summarise(report(*datasets, **changes))


def test_a_significant_gain_is_named_with_its_datasets():
    first, *_ = said(made(moved(0.1)), made(HYBRID, name="two"))
    assert first == (
        "Listwise reranking has a mean nDCG@10 of 50.0 on 2 datasets, hybrid search has 45.0: "
        "listwise reranking is 5.0 points higher on the mean (p = 0.002); significantly better on "
        "one, no difference beyond chance on the other 1."
    )


def test_a_significant_loss_is_named_too():
    first, *_ = said(made(moved(-0.02)))
    assert first.endswith("listwise reranking is 2.0 points lower (p = 0.002).")


def test_hybrid_search_is_said_to_be_as_good_where_reranking_brings_nothing():
    first, *_ = said(made(HYBRID))
    assert first.endswith(
        "hybrid search alone is as good here, the difference of +0.0 points may be chance "
        "(p = 1.000)."
    )


def test_a_difference_on_the_mean_may_be_significant_on_no_dataset_alone():
    up = [0.1] * 5 + [0.0] * 5
    both = [made([a + b for a, b in zip(HYBRID, up, strict=True)], name=name) for name in "ab"]
    first, *_ = said(*both)
    assert first.endswith(
        "5.0 points higher on the mean (p = 0.002); on no dataset alone is the difference "
        "significant."
    )


def test_a_difference_that_is_not_small_may_be_chance():
    first, *_ = said(made([HYBRID[0] + 0.5, *HYBRID[1:]]))
    assert first.endswith("5.0 points higher (p = 1.000), which chance may explain.")


def test_a_method_without_prompt_is_said_to_be_as_good_or_better():
    same = said(made(moved(0.1), evidence=moved(0.1)))
    assert same[1].startswith(
        "Without any prompt, evidence has 55.0: it is as good as listwise reranking"
    )
    better = said(made(moved(0.1), evidence=moved(0.2)))
    assert "listwise reranking is 10.0 points lower (p = 0.002)." in better[2]


def test_an_adapter_that_adds_nothing_is_said_to_add_nothing():
    values = {"hybrid": HYBRID, "prompt": moved(0.1), "listwise": moved(0.1)}
    sentences = said(dataset(methods=methods(values)))
    assert any("the trained adapter adds nothing to it" in sentence for sentence in sentences)


def test_queries_are_counted_by_gain_and_loss():
    sentences = said(made([0.9, *HYBRID[1:-1], 0.1]))
    assert (
        "Of 10 queries, 1 have a better ranking than with hybrid search, 1 a worse one, and 8 an "
        "equally good one." in sentences
    )


def test_the_time_is_the_mean_of_the_medians():
    assert (
        "One query takes 32 ms with listwise reranking and 8 ms with hybrid search on this machine "
        "(medians)." in said(made(HYBRID))
    )


def test_a_sample_of_the_queries_and_few_queries_are_said():
    *_, sampled, few = said(dataset(queries=4, judged=8))
    assert sampled == "Not all judged queries were measured: 4 of 8 on one, spread evenly."
    assert few.startswith("Fewer than 50 queries (one) show only large differences")
    assert not any("Not all" in sentence for sentence in said(made(HYBRID)))


def test_the_gain_without_word_datasets_is_said():
    both = [made(moved(0.1)), made(moved(0.02), name="two")]
    sentences = said(*both, without=("one",), word_datasets=("one",))
    assert "Without one the mean gain over hybrid search is +2.0 points." in sentences


def test_what_the_documents_in_the_prompt_bring_is_said():
    def depth(documents, values, *, own=False):
        by_query = {f"q{n}": value for n, value in enumerate(values)}
        return Depth(documents, sum(values) / len(values), by_query, documents, 9.0, 0.0, own)

    def with_own(values):
        sweep = (depth(0, HYBRID), depth(5, values, own=True))
        return said(made(values, prompts=prompts(depth=sweep)))

    assert (
        "Without any document in its prompt, listwise reranking has 45.0: with 5 documents it is "
        "10.0 points higher (p = 0.002)." in with_own(moved(0.1))
    )
    nothing = "the 5 documents bring nothing, the difference of +0.0 points may be chance"
    assert any(nothing in sentence for sentence in with_own(HYBRID))
    none = said(made(HYBRID, prompts=prompts(depth=(depth(0, HYBRID, own=True),))))
    assert not any("document in its prompt" in sentence for sentence in none)


def test_the_best_method_is_named_where_it_is_not_the_subject():
    sentences = said(made(moved(0.1), evidence=moved(0.2)))
    assert sentences[1] == "The highest mean is that of evidence: 65.0."
    assert not any("highest" in sentence for sentence in said(made(moved(0.1))))


def test_another_reranker_is_compared_with_the_listwise_prompt():
    values = {"hybrid": HYBRID, "listwise": moved(0.1), "rerank": moved(0.2)}
    sentences = said(dataset(methods=methods(values)), subject="rerank", reranker="some-t5")
    assert sentences[0].startswith("Reranking with some-t5 has a mean nDCG@10 of 65.0 on 1 dataset")
    assert "Listwise reranking with some-model has 55.0: reranking with some-t5 is" in sentences[1]


def test_comparing_gives_points_and_the_significant_datasets():
    both = report(made(moved(0.1)), made(moved(-0.3), name="two"), made(HYBRID, name="three"))
    found = compare(methods_of(both, "listwise", "hybrid"))
    assert found.points == pytest.approx(100 * (0.1 - 0.3 + 0.0) / 3)
    assert (found.better, found.worse, found.equal) == (["one"], ["two"], False)


def test_the_difference_of_the_means_is_tested_over_all_queries():
    half = [value + 0.1 for value in HYBRID[:5]] + HYBRID[5:]
    both = report(made(half, name="one"), made(half, name="two"))
    found = mean_differences(both)["listwise"]
    # Ten queries differ, all in one direction: 2 of 2^10 sign patterns are as far from 0.
    assert (found.wins, found.ties, found.losses) == (10, 10, 0)
    assert found.p == pytest.approx(2 / 2**10)
    # Two methods are compared, and the other one does not differ at all.
    assert found.p_holm == pytest.approx(4 / 2**10)


def test_every_method_has_a_label_and_a_meaning():
    assert LABELS.keys() == MEANINGS.keys()
