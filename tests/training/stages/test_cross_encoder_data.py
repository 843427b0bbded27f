"""Which documents a list shows, where their scores go, and what the loss counts twice."""

from __future__ import annotations

import random

import pytest
import torch

from e2rank_rag.losses import (
    pointwise_ce_loss,
    poly1_softmax_loss,
    ranknet_loss,
    softmax_ce_loss,
)
from e2rank_rag.pair_tokenization import PairTokenizer
from e2rank_rag.recipe import CrossEncoderRecipe
from e2rank_rag.tokenization import plain_tokenizer
from e2rank_rag.training.config import RankT5Config
from e2rank_rag.training.lists import ListDataset, TrainingList
from e2rank_rag.training.objective import ranking_loss, scores_loss
from e2rank_rag.training.stages.cross_encoder import CrossEncoderData, upsampled_places
from e2rank_rag.types import RankingExample
from tests.conftest import bert_tokenizer


def example(labels, texts=None):
    texts = texts or tuple(f"d{place}" for place in range(len(labels)))
    return RankingExample("cats", tuple(texts), tuple(map(float, labels)))


def drawn(labels, size, candidates=None, *, texts=None, times=200):
    """The indices of the documents in `times` draws of a list."""
    given = example(labels, texts)
    sample = CrossEncoderData(config(list_size=size, candidates=candidates), None).sample
    lists = (sample(given, random.Random(seed)) for seed in range(times))
    return [[given.documents.index(text) for text in each.documents] for each in lists]


def test_a_list_is_one_relevant_document_and_others_by_chance():
    lists = drawn([0, 1, 0, 0, 1, -1], 3)
    assert {places[0] for places in lists} == {1, 4}
    assert {place for places in lists for place in places[1:]} == {0, 2, 3, 5}
    assert all(len(places) == len(set(places)) == 3 for places in lists)
    counts = [sum(place in places for places in lists) for place in (0, 2, 3, 5)]
    assert min(counts) > 70  # each is in half of 200


def test_a_short_list_is_all_there_is():
    assert sorted(drawn([1, 0, 0], 36, times=1)[0]) == [0, 1, 2]
    assert drawn([1], 36, times=1) == [[0]]


def test_a_copy_of_a_relevant_document_is_no_other():
    lists = drawn([1, 0, 0], 3, texts=("same", "same", "another"))
    assert all(places == [0, 2] for places in lists)


def test_others_come_from_the_first_candidates_and_the_relevant_one_from_anywhere():
    lists = drawn([0, 0, 0, 0, 0, 1], 3, candidates=3)
    assert {places[0] for places in lists} == {5}
    assert {place for places in lists for place in places[1:]} == {0, 1, 2}


def test_graded_lists_keep_their_grades_and_draw_from_all_the_rest():
    lists = drawn([3, 2, 1], 2)  # a teacher's order
    assert {tuple(places) for places in lists} == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}
    (whole,) = drawn_lists([example([2, 1, 0])], list_size=3)
    graded = dict(zip(whole.documents, whole.labels, strict=True))
    assert graded == {"d0": 2.0, "d1": 1.0, "d2": 0.0}


ORDER = RankingExample(
    "cats", tuple(f"d{place}" for place in range(16)), tuple(map(float, range(1, 17))), judged=()
)


def drawn_lists(examples, *, seed=0, epoch=0, **stated):
    dataset = ListDataset([examples], CrossEncoderData(config(**stated), None).sample, seed=seed)
    return [dataset[epoch, index] for index in range(len(dataset))]


def drawn_batch(*examples, **stated):
    """A batch of these examples whole, as the stage of such a configuration trains on it."""
    settings = config(**stated)
    lists = drawn_lists(examples, **stated, list_size=16)
    batch = data(**stated).collate(lists)
    return batch, ranking_loss(settings)


@pytest.mark.parametrize(("loss", "epsilon"), [("softmax", 0.0), ("poly1", 2.0)])
def test_permutations_have_one_target_and_every_list_weighs_the_same(loss, epsilon):
    """Three lists of a teacher, of a judgement and of grades: the loss is the mean of three cross
    entropies, each with targets that sum to 1."""
    one, two = 0.6, 0.4
    judged = example([1.0, *[0.0] * 15])
    graded = example([3.0, 2.0, *[0.0] * 14])
    stated = {"loss": loss, **({"epsilon": epsilon} if loss == "poly1" else {})}
    batch, measure = drawn_batch(ORDER, judged, graded, **stated)
    assert sorted(batch["relevance"][0].tolist()) == [0.0] * 15 + [1.0]
    scores = torch.randn(48, generator=torch.Generator().manual_seed(0)).double()
    table = torch.empty(48).double().index_copy(0, batch["places"], scores).view(3, 16)
    log_p = table - table.exp().sum(1, keepdim=True).log()

    def cost(row, label):
        place = batch["relevance"][row].tolist().index(label)
        return float(-log_p[row, place] + epsilon * (1 - log_p[row, place].exp()))

    expected = (cost(0, 1.0) + cost(1, 1.0) + one * cost(2, 3.0) + two * cost(2, 2.0)) / 3
    assert float(scores_loss(scores, batch, measure)) == pytest.approx(expected, rel=1e-5)


def test_a_permutation_has_as_many_targets_as_relevant_documents_for_point_ce():
    batch, _ = drawn_batch(ORDER, loss="point_ce")
    assert sorted(batch["relevance"][0].tolist()) == [0.0] * 15 + [1.0]
    # The 15 others once, the relevant one 15 times.
    assert len(batch["repeated"][0]) == 30


def test_pairs_are_of_the_whole_permutation():
    batch, _ = drawn_batch(ORDER, loss="pair")
    assert sorted(batch["relevance"][0].tolist()) == list(range(1, 17))


def test_raw_labels_and_relevance_can_be_asked_for():
    raw, _ = drawn_batch(ORDER, loss="softmax", targets="labels")
    assert sorted(raw["relevance"][0].tolist()) == list(range(1, 17))
    binary, _ = drawn_batch(example([3, 2, 0]), loss="softmax", targets="relevant")
    assert sorted(binary["relevance"][0].tolist()) == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match='targets: the loss "pair" takes only the order'):
        config(loss="pair", targets="relevant")


def test_the_query_itself_is_no_other():
    lists = drawn([1, 0, 0], 3, texts=("a", "cats", "b"))
    assert all(places == [0, 2] for places in lists)


def test_a_draw_depends_on_seed_and_epoch_alone():
    examples = [example([1, *[0] * 50]) for _ in range(3)]

    def lists(seed, epoch):
        return drawn_lists(examples, seed=seed, epoch=epoch, list_size=5)

    assert lists(0, 0) == lists(0, 0)
    assert lists(0, 0) != lists(0, 1)
    assert lists(0, 0) != lists(1, 0)
    assert len(set(lists(0, 0))) == 3


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 0, 0, 0], [0, 1, 2, 3, 0, 0]),
        ([1, 0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 0, 2, 0]),
        ([1, 0], [0, 1]),
        ([1, 1, 0], [0, 1, 2]),
        ([0, 0], [0, 1]),
    ],
)
def test_relevant_documents_are_repeated_until_there_are_as_many_as_others(labels, expected):
    assert upsampled_places(labels) == expected


LISTS = [
    TrainingList("cats", ("cats purr", "dogs", "a ferry crosses the strait"), (1.0, 0.0, 0.0)),
    TrainingList("dogs bark", ("bread rises because yeast turns sugar", "dogs"), (0.0, 1.0)),
]


def data(**stated):
    tokenizer = bert_tokenizer()
    recipe = CrossEncoderRecipe(structure="encoder-only", input="segments", max_tokens=64)
    pairs = PairTokenizer(tokenizer, plain_tokenizer(tokenizer), recipe, segments=True)
    return CrossEncoderData(config(**stated), pairs)


@pytest.mark.parametrize("chunk_tokens", [None, 24, 16])
def test_every_pair_is_in_one_chunk_and_knows_its_place(chunk_tokens):
    made = data(chunk_tokens=chunk_tokens)
    batch = made.collate(LISTS)
    assert (len(batch["chunks"]) == 1) == (chunk_tokens is None)
    if chunk_tokens is not None:
        sizes = [chunk["input_ids"].shape for chunk in batch["chunks"]]
        assert all(rows * width <= chunk_tokens or rows == 1 for rows, width in sizes)
    rows = [
        ids[mask.bool()].tolist()
        for chunk in batch["chunks"]
        for ids, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)
    ]
    expected = {
        number * 3 + place: pair.ids
        for number, drawn in enumerate(LISTS)
        for place, pair in enumerate(made.tokenizer.pairs(drawn.query, drawn.documents))
    }
    assert dict(zip(batch["places"].tolist(), rows, strict=True)) == expected
    assert batch["relevance"].tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert batch["listed"].tolist() == [[True, True, True], [True, True, False]]


def config(**stated):
    return RankT5Config(init_from="m", output="o", data=[{"path": "p"}], **stated)


SCORES = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.75])


@pytest.mark.parametrize(
    ("stated", "loss"),
    [
        ({"loss": "pair"}, ranknet_loss),
        ({"loss": "softmax"}, softmax_ce_loss),
        ({"loss": "poly1", "epsilon": 2.0}, lambda *a: poly1_softmax_loss(*a, epsilon=2.0)),
        ({"loss": "point_ce", "upsample": False}, pointwise_ce_loss),
    ],
)
def test_the_loss_is_that_of_the_scores_in_their_places(stated, loss):
    batch = data(upsample=None).collate(LISTS)
    table = torch.zeros(6)
    for place, score in zip(batch["places"].tolist(), SCORES.tolist(), strict=True):
        table[place] = score
    expected = loss(
        table.view(2, 3),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        torch.tensor([[True, True, True], [True, True, False]]),
    )
    torch.testing.assert_close(scores_loss(SCORES, batch, ranking_loss(config(**stated))), expected)


def test_upsampling_counts_a_relevant_document_as_often_as_the_others():
    stated = config(loss="point_ce")
    assert stated.upsamples
    assert not config(loss="softmax").upsamples
    batch = data(loss="point_ce").collate(LISTS)
    by_place = dict(zip(batch["places"].tolist(), SCORES.double().tolist(), strict=True))

    def cost(place, label):
        score = torch.tensor(by_place[place]).double()
        return -torch.nn.functional.logsigmoid(score if label else -score)

    first = (2 * cost(0, 1) + cost(1, 0) + cost(2, 0)) / 4
    second = (cost(3, 0) + cost(4, 1)) / 2
    found = scores_loss(SCORES, batch, ranking_loss(stated))
    assert float(found) == pytest.approx(float((first + second) / 2), abs=1e-6)
