"""Which positive, which negatives; copies are no negatives, wherever in the batch they are."""

from __future__ import annotations

import random

import pytest
import torch

from e2rank_rag.prompts import TASKS, Prompts
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, pad_id, plain_tokenizer
from e2rank_rag.training.pairs import (
    DrawnPair,
    PairCollator,
    PairDataset,
    counted_documents,
    task_recipe,
)
from e2rank_rag.types import RankingExample


def example(query, labels, **more):
    documents = tuple(f"{query} {place}" for place in range(len(labels)))
    return RankingExample(query, documents, tuple(labels), **more)


def dataset(*examples, negatives=1, seed=0):
    return PairDataset([examples], negatives=negatives, seed=seed)


def test_the_positive_is_drawn_among_the_highest_labels():
    graded = example("q", [2, 1, 0, 2])
    drawn = {dataset(graded, seed=seed)[0].positive for seed in range(20)}
    assert drawn == {"q 0", "q 3"}


def test_a_known_positive_is_the_positive_and_the_rest_of_a_teachers_order_stand_against_it():
    order = example("q", [3, 2, 1], positive=2)
    pair = dataset(order, negatives=2)[0]
    assert pair.positive == "q 2"
    assert set(pair.negatives) == {"q 0", "q 1"}
    assert pair.relevant == {"q 2"}


def test_the_query_itself_is_no_hard_negative():
    copied = RankingExample("q", ("a", "q", "b"), (1.0, 0.0, 0.0))
    assert dataset(copied, negatives=2)[0].negatives == ("b",)


def test_negatives_are_drawn_among_labels_of_0_and_below():
    rows = [dataset(example("q", [0, 1, -1, 0]), negatives=2, seed=s)[0] for s in range(30)]
    assert {text for row in rows for text in row.negatives} == {"q 0", "q 2", "q 3"}
    assert all(len(set(row.negatives)) == 2 for row in rows)


def test_there_are_no_more_negatives_than_an_example_has():
    few = dataset(example("q", [1, 0]), example("r", [1, 0, 0]), negatives=7)
    assert few.negatives == 2
    assert [len(few[0].negatives), len(few[1].negatives)] == [1, 2]


def test_a_text_with_both_labels_is_relevant():
    mixed = RankingExample("q", ("a", "b", "a", "b"), (1.0, 0.0, 0.0, 0.0))
    assert dataset(mixed, negatives=3)[0].negatives == ("b",)


def test_what_answers_a_query_anywhere_is_relevant_to_it_everywhere():
    first = RankingExample("q", ("a", "b", "c"), (1.0, 0.0, 0.0))
    second = RankingExample("q", ("b",), (1.0,))
    pairs = dataset(first, second, negatives=2)
    assert pairs[0].relevant == pairs[1].relevant == {"a", "b"}
    assert pairs[0].negatives == ("c",)


def test_draws_depend_on_seed_epoch_and_example_alone():
    examples = [example(name, [1, 1, *[0] * 20]) for name in "qr"]
    one, other = (dataset(*examples, negatives=4, seed=1) for _ in range(2))
    assert [other[1], other[0]] == [one[1], one[0]]
    before = one[0]
    one.epoch = 1
    assert one[0] != before
    one.epoch = 0
    assert one[0] == before


@pytest.fixture
def collator(bert):
    loaded = bert.loaded
    tokenizer = TextTokenizer(loaded.tokenizer, plain_tokenizer(loaded.tokenizer), bert.recipe)
    return PairCollator(
        {None: tokenizer}, pad_id=pad_id(loaded.tokenizer), negatives=2, chunk_size=3
    )


def rows(chunks):
    """The ids of each text, without padding."""
    return [
        row[mask.bool()].tolist()
        for chunk in chunks
        for row, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)
    ]


def test_a_batch_holds_every_text_once_in_chunks_by_length(collator):
    tokenizer = collator.tokenizers[None]
    pairs = [
        DrawnPair("cats", "cats purr", ("dogs", "a ferry crosses the strait"), frozenset(), None),
        DrawnPair("dogs", "dogs bark and dig", ("bread",), frozenset(), None),
    ]
    batch = collator(pairs)
    texts = ["cats purr", "dogs", "a ferry crosses the strait", "dogs bark and dig", "bread", ""]
    expected = {text: tokenizer.documents([text])[0].ids for text in texts}
    found = rows(batch["documents"])
    assert sorted(found) == sorted(expected.values())
    assert [len(row) for row in found] == sorted(map(len, found), reverse=True)
    assert [len(chunk["input_ids"]) for chunk in batch["documents"]] == [3, 3]
    for row, pair in zip(batch["positives"], pairs, strict=True):
        assert found[row] == expected[pair.positive]
    assert rows(batch["queries"]) == [tokens.ids for tokens in tokenizer.queries(["cats", "dogs"])]


def test_negatives_are_all_documents_but_copies_of_what_is_relevant(collator):
    """By brute force, over batches in which most texts stand several times."""
    words = ["bread", "cats", "dogs", "ferry", "prime"]
    for seed in range(20):
        draw = random.Random(seed)
        pairs = []
        for _ in range(4):
            positive, *others = draw.sample(words, 3)
            relevant = frozenset({positive, *draw.sample(words, draw.randint(0, 2))})
            kept = tuple(text for text in others if text not in relevant)
            pairs.append(DrawnPair(draw.choice(words), positive, kept, relevant, None))
        batch = collator(pairs)
        counted = counted_documents(batch["document_keys"], batch["relevant_keys"])
        ids = {
            tuple(collator.tokenizers[None].documents([text])[0].ids): text for text in [*words, ""]
        }
        texts = [ids[tuple(row)] for row in rows(batch["documents"])]
        assert counted.tolist() == [
            [text not in ("", pair.query) and text not in pair.relevant for text in texts]
            for pair in pairs
        ]
        assert [texts[row] for row in batch["positives"]] == [pair.positive for pair in pairs]


def test_without_a_chunk_size_a_batch_is_one_chunk(collator):
    collator.chunk_size = None
    batch = collator([DrawnPair("cats", "dogs", ("bread",), frozenset({"dogs"}), None)] * 5)
    assert [len(batch[side]) for side in ("queries", "documents")] == [1, 1]
    assert batch["documents"][0]["input_ids"].shape[0] == 15


def test_many_relevant_texts_make_no_large_tensor():
    documents = torch.arange(1000)
    counted = counted_documents(documents, torch.arange(500).repeat(300, 1))
    assert counted.tolist() == [[place >= 500 for place in range(1000)]] * 300


INSTRUCTED = Recipe(pooling="last", prompts=Prompts(query="Instruct: {task}\nQuery:{query}"))


def test_a_task_is_a_name_or_a_sentence():
    assert task_recipe(INSTRUCTED, None) == INSTRUCTED
    assert task_recipe(INSTRUCTED, "scifact").prompts.task == TASKS["scifact"]
    stated = task_recipe(INSTRUCTED, "Given a claim, find its source").prompts
    assert stated.query_text("q") == "Instruct: Given a claim, find its source\nQuery:q"
    with pytest.raises(ValueError, match="'scfact'"):
        task_recipe(INSTRUCTED, "scfact")


def test_a_model_without_instructions_keeps_its_prompts():
    plain = Recipe(pooling="mean", prompts=Prompts())
    assert task_recipe(plain, "anything") == plain
