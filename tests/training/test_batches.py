"""Which documents, prompts and negatives a step sees; the same again after a stop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from e2rank_rag.feedback import Feedback
from e2rank_rag.tokenization import TextTokenizer, pad_id, plain_tokenizer
from e2rank_rag.training.batches import ListCollator, ListDataset, ListFeedback, SourceBatches
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import RankingExample


def configured(**changes):
    settings = {"init_from": "m", "output": "o", "mode": "joint", "data": [{"path": "x"}]}
    return ListwiseConfig.model_validate({**settings, "prompt": {"depths": [3]}, **changes})


def example(name, labels, positive=None):
    documents = tuple(f"{name}{place}" for place in range(len(labels)))
    return RankingExample(name, documents, tuple(labels), positive=positive)


def drawn(labels, *, seed=0, **changes):
    return ListDataset([[example("d", labels)]], configured(**changes), seed=seed)[0]


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
        row = ListDataset([[known]], configured(list_size=3, positive="known"), seed=seed)[0]
        assert row.documents[row.positive] == "d5"
        assert len(set(row.documents)) == 3


def test_the_prompt_shows_the_first_documents_as_retrieved():
    assert drawn([0, 1, 0, 0, 0, 0, 0]).shown == ("d0", "d1", "d2")


def vectors_of(table):
    known = TextVectors(2)
    known.encode(list(table), lambda texts: np.array([table[text] for text in texts], np.float32))
    return known


def test_with_feedback_the_prompt_shows_the_best_and_their_mean_is_added(collator):
    feedback = Feedback(lexical_weight=1.0, temperature=0.5, weight=0.4)
    vectors = vectors_of({"a bridge": [1.0, 0.0], "the ferry": [0.8, 0.6], "bread": [0.0, 1.0]})
    queries = vectors_of({"ferry": [1.0, 0.0]})
    documents = tuple(vectors.rows)
    lists = [RankingExample("ferry", documents, (0.0, 1.0, 0.0))]
    config = configured(mode="adapter", lora={"rank": 4})
    dataset = ListDataset(
        [lists], config, seed=0, feedback=ListFeedback(feedback, vectors, queries)
    )
    evidence = feedback.evidence("ferry", documents, np.array([1.0, 0.8, 0.0]))
    assert dataset[0].shown == ("the ferry", "a bridge", "bread")
    collator.vectors, collator.query_vectors = vectors, queries
    batch = collator([dataset[0]])
    expected = 0.4 * feedback.mean(vectors.values, evidence)
    np.testing.assert_allclose(batch["feedback"], expected[None], rtol=1e-6)


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


def test_draws_depend_on_seed_epoch_and_example_alone():
    examples = [[example(name, [1] * 10 + [0] * 10) for name in "ab"]]
    shuffled = configured(prompt={"depths": [9], "order": "shuffled"})
    one, other = (ListDataset(examples, shuffled, seed=1) for _ in range(2))
    assert [other[1], other[0]] == [one[1], one[0]]
    before = one[0]
    one.epoch = 1
    assert one[0] != before
    one.epoch = 0
    assert one[0] == before


def batches(sizes, *, size=4, balance=1.0, seed=0, together=1):
    dataset = ListDataset([[]], configured(), seed=0)
    return SourceBatches(
        sizes, size, balance=balance, seed=seed, dataset=dataset, together=together
    )


def test_a_batch_is_of_one_source_and_a_source_is_used_up_before_it_begins_anew():
    sampler = batches([12, 20])
    rows = list(sampler)
    assert len(rows) == len(sampler) == 8
    for row in rows:
        assert len(row) == 4
        assert max(row) < 12 or min(row) >= 12
    counts = Counter(place for row in rows for place in row)
    for source in (range(12), range(12, 32)):
        uses = [counts[place] for place in source]
        assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize(("balance", "expected"), [(1.0, 0.9), (0.0, 0.5)])
def test_sources_are_drawn_by_their_size_to_a_power(balance, expected):
    sampler = batches([9000, 1000], balance=balance)
    share = np.mean([row[0] < 9000 for row in sampler])
    assert share == pytest.approx(expected, abs=0.04)


def test_another_epoch_has_other_batches_and_the_same_one_the_same():
    sampler = batches([40])
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert sampler.dataset.epoch == 1
    assert list(sampler) != first


def test_batches_taken_side_by_side_are_one_batch_of_one_source():
    whole, halves = batches([30, 50], size=8), batches([30, 50], size=4, together=2)
    rows = list(halves)
    assert len(rows) == len(halves) == 20
    pairs = zip(rows[::2], rows[1::2], strict=True)
    assert [first + second for first, second in pairs] == list(whole)


def test_every_process_has_as_many_batches():
    assert len(batches([44], size=4, together=2)) == 10
    assert len(batches([3], size=4, together=2)) == 2


@pytest.fixture
def collator(bert):
    loaded = bert.loaded
    tokenizer = TextTokenizer(loaded.tokenizer, plain_tokenizer(loaded.tokenizer), bert.recipe)
    return ListCollator(tokenizer, pad_id=pad_id(loaded.tokenizer))


def test_short_lists_are_padded_and_relevant_texts_are_no_negatives(collator):
    shared = RankingExample("cats", ("a", "b", "x"), (1.0, 0.0, 1.0))
    other = RankingExample("dogs", ("x", "c"), (1.0, 0.0))
    dataset = ListDataset([[shared, other]], configured(list_size=4), seed=0)
    batch = collator([dataset[0], dataset[1]])
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


def test_frozen_vectors_come_with_their_texts(collator):
    known, queries = TextVectors(2), TextVectors(2)
    known.encode(["a", "b"], lambda texts: np.array([[1, 0], [0, 1]], dtype=np.float32))
    queries.encode(["cats"], lambda texts: np.array([[0.6, 0.8]], dtype=np.float32))
    frozen = ListCollator(collator.text_tokenizer, pad_id=0, vectors=known, query_vectors=queries)
    dataset = ListDataset([[RankingExample("cats", ("b", "a"), (0.0, 1.0))]], configured(), seed=0)
    batch = frozen([dataset[0]])
    torch.testing.assert_close(batch["document_vectors"], torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    torch.testing.assert_close(batch["query_vectors"], torch.tensor([[0.6, 0.8]]))
    assert "documents" not in batch
