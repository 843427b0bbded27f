"""Which positive, which negatives; copies are no negatives, wherever in the batch they are."""

from __future__ import annotations

import random

import pytest
import torch

from e2rank_rag.training.config import ContrastiveConfig
from e2rank_rag.training.lists import ListDataset, TrainingList
from e2rank_rag.training.stages.contrastive import ContrastiveData, counted_documents
from e2rank_rag.types import RankingExample


def example(query, labels, **more):
    documents = tuple(f"{query} {place}" for place in range(len(labels)))
    return RankingExample(query, documents, tuple(labels), **more)


def data(*examples, negatives=1, chunk_size=None, tokenizers=None):
    config = ContrastiveConfig(
        init_from="m",
        output="o",
        data=[{"path": "x"}],
        negatives=negatives,
        chunk_size=chunk_size,
    )
    return ContrastiveData(config, [examples], tokenizers or {})


def dataset(*examples, negatives=1, seed=0):
    return ListDataset([examples], data(*examples, negatives=negatives).sample, seed=seed)


def pair(query, positive, negatives, relevant=()):
    labels = (1.0, *[0.0] * len(negatives))
    return TrainingList(query, (positive, *negatives), labels, relevant=frozenset(relevant))


def test_the_positive_is_drawn_among_the_highest_labels():
    graded = example("q", [2, 1, 0, 2])
    drawn = {dataset(graded, seed=seed)[0, 0].documents[0] for seed in range(20)}
    assert drawn == {"q 0", "q 3"}


def test_a_known_positive_is_the_positive_and_the_rest_of_a_teachers_order_stand_against_it():
    order = example("q", [3, 2, 1], positive=2)
    drawn = dataset(order, negatives=2)[0, 0]
    assert drawn.documents[0] == "q 2"
    assert set(drawn.documents[1:]) == {"q 0", "q 1"}
    assert drawn.relevant == {"q 2"}


def test_the_query_itself_is_no_hard_negative():
    copied = RankingExample("q", ("a", "q", "b"), (1.0, 0.0, 0.0))
    assert dataset(copied, negatives=2)[0, 0].documents == ("a", "b")


def test_negatives_are_drawn_among_labels_of_0_and_below():
    rows = [dataset(example("q", [0, 1, -1, 0]), negatives=2, seed=s)[0, 0] for s in range(30)]
    assert {text for row in rows for text in row.documents[1:]} == {"q 0", "q 2", "q 3"}
    assert all(len(set(row.documents[1:])) == 2 for row in rows)


def test_there_are_no_more_negatives_than_an_example_has():
    examples = (example("q", [1, 0]), example("r", [1, 0, 0]))
    assert data(*examples, negatives=7).negatives == 2
    few = dataset(*examples, negatives=7)
    assert [len(few[0, 0].documents), len(few[0, 1].documents)] == [2, 3]


def test_a_text_with_both_labels_is_relevant():
    mixed = RankingExample("q", ("a", "b", "a", "b"), (1.0, 0.0, 0.0, 0.0))
    assert dataset(mixed, negatives=3)[0, 0].documents == ("a", "b")


def test_what_answers_a_query_anywhere_is_relevant_to_it_everywhere():
    first = RankingExample("q", ("a", "b", "c"), (1.0, 0.0, 0.0))
    second = RankingExample("q", ("b",), (1.0,))
    pairs = dataset(first, second, negatives=2)
    assert pairs[0, 0].relevant == pairs[0, 1].relevant == {"a", "b"}
    assert pairs[0, 0].documents == ("a", "c")


def test_draws_depend_on_seed_epoch_and_example_alone():
    examples = [example(name, [1, 1, *[0] * 20]) for name in "qr"]
    one, other = (dataset(*examples, negatives=4, seed=1) for _ in range(2))
    assert [other[0, 1], other[0, 0]] == [one[0, 1], one[0, 0]]
    before = one[0, 0]
    assert one[1, 0] != before
    assert one[0, 0] == before


@pytest.fixture
def collated(bert):
    """Data whose batches have two negatives per query."""
    example = RankingExample("q", ("a", "b", "c"), (1.0, 0.0, 0.0))
    return data(example, negatives=2, chunk_size=3, tokenizers={None: bert.tokenizer})


def rows(chunks):
    """The ids of each text, without padding."""
    return [
        row[mask.bool()].tolist()
        for chunk in chunks
        for row, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)
    ]


def test_a_batch_holds_every_text_once_in_chunks_by_length(collated):
    tokenizer = collated.tokenizers[None]
    pairs = [
        pair("cats", "cats purr", ("dogs", "a ferry crosses the strait")),
        pair("dogs", "dogs bark and dig", ("bread",)),
    ]
    batch = collated.collate(pairs)
    texts = ["cats purr", "dogs", "a ferry crosses the strait", "dogs bark and dig", "bread", ""]
    expected = {text: tokenizer.documents([text])[0].ids for text in texts}
    found = rows(batch["documents"])
    assert sorted(found) == sorted(expected.values())
    assert [len(row) for row in found] == sorted(map(len, found), reverse=True)
    assert [len(chunk["input_ids"]) for chunk in batch["documents"]] == [3, 3]
    for row, each in zip(batch["positives"], pairs, strict=True):
        assert found[row] == expected[each.documents[0]]
    assert rows(batch["queries"]) == [tokens.ids for tokens in tokenizer.queries(["cats", "dogs"])]


def test_negatives_are_all_documents_but_copies_of_what_is_relevant(collated):
    """By brute force, over batches in which most texts stand several times."""
    words = ["bread", "cats", "dogs", "ferry", "prime"]
    for seed in range(20):
        draw = random.Random(seed)
        pairs = []
        for _ in range(4):
            positive, *others = draw.sample(words, 3)
            relevant = frozenset({positive, *draw.sample(words, draw.randint(0, 2))})
            kept = tuple(text for text in others if text not in relevant)
            pairs.append(pair(draw.choice(words), positive, kept, relevant))
        batch = collated.collate(pairs)
        counted = counted_documents(batch["document_keys"], batch["relevant_keys"])
        ids = {
            tuple(collated.tokenizers[None].documents([text])[0].ids): text for text in [*words, ""]
        }
        texts = [ids[tuple(row)] for row in rows(batch["documents"])]
        assert counted.tolist() == [
            [text not in ("", each.query) and text not in each.relevant for text in texts]
            for each in pairs
        ]
        assert [texts[row] for row in batch["positives"]] == [each.documents[0] for each in pairs]


def test_without_a_chunk_size_a_batch_is_one_chunk(collated):
    collated.chunk_size = None
    batch = collated.collate([pair("cats", "dogs", ("bread",), {"dogs"})] * 5)
    assert [len(batch[side]) for side in ("queries", "documents")] == [1, 1]
    assert batch["documents"][0]["input_ids"].shape[0] == 15


def test_many_relevant_texts_make_no_large_tensor():
    documents = torch.arange(1000)
    counted = counted_documents(documents, torch.arange(500).repeat(300, 1))
    assert counted.tolist() == [[place >= 500 for place in range(1000)]] * 300
