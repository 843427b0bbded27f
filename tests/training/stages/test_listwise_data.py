"""Which documents and prompts a training list has, and the tensors of a batch of lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from e2rank_rag.evidence import CandidateWords, Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.lists import ListDataset
from e2rank_rag.training.stages.listwise import ListwiseData
from e2rank_rag.training.vectors import FrozenVectors, TextVectors
from e2rank_rag.types import RankingExample
from e2rank_rag.words import Bm25
from tests.encoders import TableEncoder


def configured(**changes):
    settings = {"init_from": "m", "output": "o", "mode": "joint", "data": [{"path": "x"}]}
    return ListwiseConfig.model_validate({**settings, "prompt": {"depths": [3]}, **changes})


def example(name, labels, positive=None):
    documents = tuple(f"{name}{place}" for place in range(len(labels)))
    return RankingExample(name, documents, tuple(labels), positive=positive)


def draw(examples, *, seed=0, frozen=None, **changes):
    """The list of the first example."""
    data = ListwiseData(configured(**changes), {}, frozen)
    return ListDataset([examples], data.sample, seed=seed)[0, 0]


def drawn(labels, *, seed=0, **changes):
    return draw([example("d", labels)], seed=seed, **changes)


def test_positives_come_first_then_the_nearest_others():
    row = drawn([0, 1, 0, 0, 2, 0], list_size=4)
    assert row.documents == ("d1", "d4", "d0", "d2")
    assert row.labels == (1, 2, 0, 0)
    assert row.positive == 1
    assert row.relevant == {"d1", "d4"}


def test_of_many_positives_half_a_list_is_taken_as_they_come():
    row = drawn([0, 0, *[1] * 10, *[0] * 10], list_size=8)
    assert row.labels == (1,) * 4 + (0,) * 4
    assert row.documents == ("d2", "d3", "d4", "d5", "d0", "d1", "d12", "d13")
    assert row.relevant == {f"d{i}" for i in range(2, 12)}


def test_a_permutation_fills_the_list_whatever_its_labels():
    row = drawn([3, 1, 2, 5, 4, 6], list_size=4)
    assert len(set(row.documents)) == 4
    assert row.labels[row.positive] == max(row.labels)


def test_the_known_positive_is_in_the_list_and_is_the_positive():
    known = example("d", [6, 5, 4, 3, 2, 1], positive=5)
    for seed in range(10):
        row = draw([known], seed=seed, list_size=3, positive="known")
        assert row.documents[row.positive] == "d5"
        assert len(set(row.documents)) == 3


def test_the_prompt_shows_the_first_documents_as_retrieved():
    assert drawn([0, 1, 0, 0, 0, 0, 0]).shown == ("d0", "d1", "d2")


def vectors_of(table):
    known = TextVectors(2)
    known.encode(list(table), lambda texts: np.array([table[text] for text in texts], np.float32))
    return known


def test_with_feedback_the_prompt_shows_the_best_and_their_mean_is_added(bert):
    feedback = Feedback(lexical_weight=1.0, temperature=0.5, weight=0.4)
    vectors = vectors_of({"a bridge": [1.0, 0.0], "the ferry": [0.8, 0.6], "bread": [0.0, 1.0]})
    queries = vectors_of({"ferry": [1.0, 0.0]})
    documents = tuple(vectors.rows)
    given = RankingExample("ferry", documents, (0.0, 1.0, 0.0))
    config = configured(mode="adapter", lora={"rank": 4}, feedback=feedback)
    frozen = FrozenVectors(vectors, {None: queries})
    data = ListwiseData(config, {None: bert.tokenizer}, frozen)
    row = ListDataset([[given]], data.sample, seed=0)[0, 0]
    words = CandidateWords.of("ferry", documents, Bm25())
    evidence = feedback.evidence(words, np.array([1.0, 0.8, 0.0]))
    assert row.shown == ("the ferry", "a bridge", "bread")
    expected = 0.4 * feedback.mean(vectors.values, evidence)
    np.testing.assert_allclose(data.collate([row])["feedback"], expected[None], rtol=1e-6)


@pytest.mark.parametrize("feedback", [None, Feedback(lexical_weight=1.0, temperature=0.5)])
def test_each_listed_document_has_what_its_words_add_in_serving(bert, feedback):
    vectors = vectors_of({"a bridge": [1.0, 0.0], "the ferry": [0.8, 0.6], "bread": [0.0, 1.0]})
    documents = tuple(vectors.rows)
    given = RankingExample("ferry", documents, (0.0, 1.0, 0.0))
    table = TableEncoder(
        {
            **dict(zip(documents, vectors.values, strict=True)),
            "ferry": [1.0, 0.0],
            "listwise ferry": [0.9, 0.1],
        },
        feedback=feedback,
    )
    table.evidence = evidence = Evidence(words=0.5, expansion=0.4)
    (served,) = ListwiseReranker(table).rerank_batch(["ferry"], [documents])
    config = configured(mode="adapter", lora={"rank": 4}, feedback=feedback, evidence=evidence)
    frozen = FrozenVectors(vectors, {None: vectors_of({"ferry": [1.0, 0.0]})})
    data = ListwiseData(config, {None: bert.tokenizer}, frozen)
    row = ListDataset([[given]], data.sample, seed=0)[0, 0]
    (added,) = data.collate([row])["added"].numpy()
    moved = table.encode_queries(["listwise ferry"])[0]
    moved = moved if row.feedback is None else moved + row.feedback
    cosines = vectors.of(row.documents) @ (moved / np.linalg.norm(moved))
    scores = dict(zip(row.documents, cosines + cosines.std() * added, strict=True))
    assert {hit.document.text: hit.score for hit in served} == pytest.approx(scores, rel=1e-5)


def test_shuffled_prompts_show_some_of_twice_as_many():
    rows = [
        drawn([0, 1, *[0] * 8], seed=s, prompt={"depths": [3], "order": "shuffled"})
        for s in range(30)
    ]
    assert {text for row in rows for text in row.shown} == {f"d{i}" for i in range(6)}
    assert all(len(set(row.shown)) == 3 for row in rows)
    mixed = [
        drawn([0, 1, *[0] * 8], seed=s, prompt={"depths": [3], "order": "mixed"}).shown
        for s in range(60)
    ]
    assert 15 < mixed.count(("d0", "d1", "d2")) < 45


def test_each_document_of_a_prompt_is_left_out_by_chance():
    options = {"depths": [4], "dropout": 0.25}
    rows = [drawn([0, 1, *[0] * 8], seed=s, prompt=options).shown for s in range(200)]
    shown = ("d0", "d1", "d2", "d3")
    assert all(row == tuple(text for text in shown if text in row) for row in rows)
    for text in shown:
        assert 0.65 < sum(text in row for row in rows) / 200 < 0.85
    assert len(set(rows)) > 10


def test_a_counterfactual_prompt_has_the_documents_of_the_next_query(bert):
    examples = [example(name, [1, 0]) for name in "abc"]
    config = configured(counterfactual=1.0, prompt={"depths": [2]})
    data = ListwiseData(config, {None: bert.tokenizer})
    lists = [ListDataset([examples], data.sample, seed=0)[0, i] for i in range(3)]
    batch = data.collate(lists)
    for row, (query, other) in enumerate(("ab", "bc", "ca")):
        (tokens,), _ = bert.tokenizer.listwise([query], [[f"{other}0", f"{other}1"]], 2)
        ids = batch["others"]["input_ids"][row][batch["others"]["attention_mask"][row] > 0]
        assert ids.tolist() == list(tokens.ids)
    empty = [replace(each, depth=0) for each in lists]
    assert "others" not in data.collate(empty)
    plain = ListwiseData(configured(), {None: bert.tokenizer})
    assert "others" not in plain.collate(lists)


def test_draws_depend_on_seed_epoch_and_example_alone():
    examples = [[example(name, [1] * 10 + [0] * 10) for name in "ab"]]
    shuffled = ListwiseData(configured(prompt={"depths": [9], "order": "shuffled"}), {})
    one, other = (ListDataset(examples, shuffled.sample, seed=1) for _ in range(2))
    assert [other[0, 1], other[0, 0]] == [one[0, 1], one[0, 0]]
    before = one[0, 0]
    assert one[1, 0] != before
    assert one[0, 0] == before


def test_short_lists_are_padded_and_relevant_texts_are_no_negatives(bert):
    shared = RankingExample("cats", ("a", "b", "x"), (1.0, 0.0, 1.0))
    other = RankingExample("dogs", ("x", "c"), (1.0, 0.0))
    data = ListwiseData(configured(list_size=4), {None: bert.tokenizer})
    lists = ListDataset([[shared, other]], data.sample, seed=0)
    batch = data.collate([lists[0, 0], lists[0, 1]])
    assert batch["listed"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["relevance"].tolist() == [[1, 1, 0], [1, 0, 0]]
    # Rows: a x b | x c padding. "x" is relevant to both queries.
    assert batch["counted"].tolist() == [
        [False, False, True, False, True, False],
        [True, False, True, False, True, False],
    ]
    assert batch["positives"].tolist() == [0, 3]
    assert batch["documents"]["input_ids"].shape[0] == 6
    assert batch["prompts"]["input_ids"].shape[0] == 2


def test_frozen_vectors_come_with_their_texts(bert):
    known, queries = TextVectors(2), TextVectors(2)
    known.encode(["a", "b"], lambda texts: np.array([[1, 0], [0, 1]], dtype=np.float32))
    queries.encode(["cats"], lambda texts: np.array([[0.6, 0.8]], dtype=np.float32))
    frozen = FrozenVectors(known, {None: queries})
    data = ListwiseData(configured(), {None: bert.tokenizer}, frozen)
    given = RankingExample("cats", ("b", "a"), (0.0, 1.0))
    batch = data.collate([ListDataset([[given]], data.sample, seed=0)[0, 0]])
    torch.testing.assert_close(batch["document_vectors"], torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    torch.testing.assert_close(batch["query_vectors"], torch.tensor([[0.6, 0.8]]))
    assert "documents" not in batch
