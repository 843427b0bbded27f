"""Grades say what is relevant, a teacher's order does not: its best document and the judged ones
are, and all others stand against them."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
import torch

from e2rank_rag.list_tokenization import ListTokenizer
from e2rank_rag.recipe import ResidualLayout
from e2rank_rag.training.base_model import frozen_vectors
from e2rank_rag.training.config import ContrastiveConfig, ListwiseConfig, ResRankConfig
from e2rank_rag.training.examples import read_examples, write_examples
from e2rank_rag.training.labels.lists import label_lists
from e2rank_rag.training.labels.teacher import Judgement
from e2rank_rag.training.relevance import (
    grades,
    is_order,
    judgements,
    other_places,
    relevant_places,
    relevant_texts,
    without_query,
)
from e2rank_rag.training.stages.contrastive import ContrastiveData
from e2rank_rag.training.stages.listwise import ListwiseData
from e2rank_rag.training.stages.resrank import ResRankData
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import RankingExample

DOCUMENTS = [f"document {place}" for place in range(16)]
RANKING = [7, *range(1, 7), *range(8, 17)]
"""The seventh is the best."""


class BackwardTeacher:
    """The last document is the best one."""

    limit = "all"

    def __init__(self):
        self.record = {"model": "backward", "terms": "CC0"}

    async def order(self, query, documents):
        return Judgement(tuple(range(len(documents), 0, -1)))

    async def aclose(self):
        """Nothing is open."""


def ranked(folder, **more):
    line = {"query": "q", "document": DOCUMENTS, "ranking": RANKING, **more}
    (folder / "lists.jsonl").write_text(json.dumps(line) + "\n")
    return read_examples(folder / "lists.jsonl")


def labelled(folder, labels=(1, *[0] * 15)):
    lists = [RankingExample("q", tuple(DOCUMENTS), tuple(map(float, labels)))]
    asyncio.run(label_lists(lists, BackwardTeacher(), folder / "labelled.jsonl"))
    return read_examples(folder / "labelled.jsonl")


def written_again(folder):
    write_examples(folder / "again.jsonl", ranked(folder))
    return read_examples(folder / "again.jsonl")


def labels_of_an_order(folder):
    line = {"query": "q", "documents": DOCUMENTS, "labels": list(range(16, 0, -1))}
    (folder / "lists.jsonl").write_text(json.dumps(line) + "\n")
    return read_examples(folder / "lists.jsonl")


def batch_of(system, examples, bert, **changes):
    """A batch of one list, as the stage trains on it."""
    stated = {"init_from": "m", "output": "o", "data": [{"path": "x"}], **changes}
    known = TextVectors(bert.dim)
    known.encode([text for each in examples for text in each.documents], bert.encode_documents)
    frozen = None if system == "joint" else frozen_vectors(bert, known, [examples])
    tokenizers = {None: bert.tokenizer}
    if system == "resrank":
        config = ResRankConfig.model_validate({**stated, "mode": "frozen"})
        reader = ListTokenizer(bert.tokenizer, ResidualLayout(), limit=128)
        data = ResRankData(config, tokenizers, {None: reader}, frozen)
        return data.collate([data.sample(examples[0], random.Random(0))])
    lora = {"rank": 4} if system == "adapter" else None
    config = ListwiseConfig.model_validate({**stated, "mode": system, "lora": lora})
    data = ListwiseData(config, tokenizers, frozen)
    return data.collate([data.sample(examples[0], random.Random(0))])


def negatives(batch):
    """How many documents of the first list stand against its positive in the InfoNCE."""
    counted = batch["counted"].scatter(1, batch["positives"][:, None], False)
    return int(counted[0].sum())


@pytest.mark.parametrize("system", ["joint", "adapter", "resrank"])
@pytest.mark.parametrize("read", [ranked, written_again, labels_of_an_order])
def test_teacher_orders_keep_their_hard_negatives(system, read, bert, tmp_path):
    examples = read(tmp_path)
    batch = batch_of(system, examples, bert)
    assert negatives(batch) == 15
    (best,) = batch["relevance"].argmax(1).tolist()
    assert batch["positives"].tolist() == [best]
    # The order itself is what RankNet learns.
    assert sorted(batch["relevance"][0].tolist()) == list(range(1, 17))


@pytest.mark.parametrize("system", ["joint", "adapter", "resrank"])
@pytest.mark.parametrize(("positive", "expected"), [("highest", 14), ("known", 15)])
def test_what_a_teacher_labelled_keeps_its_known_positive_and_its_hard_negatives(
    system, positive, expected, bert, tmp_path
):
    batch = batch_of(system, labelled(tmp_path), bert, positive=positive)
    # The teacher's best is the last document, the judged one the first: it is no negative.
    assert negatives(batch) == expected
    label = batch["relevance"].flatten()[batch["positives"]].item()
    assert label == {"highest": 16, "known": 1}[positive]


def test_all_judged_documents_of_an_order_are_relevant(tmp_path):
    (example,) = labelled(tmp_path, labels=[1, 2, *[0] * 14])
    assert example.positive == 1
    assert relevant_places(example) == [0, 1, 15]
    assert relevant_places(example, best=False) == [0, 1]
    assert relevant_texts(example, best=False) == {"document 0", "document 1"}
    assert judgements(example) == grades(example) == (1.0, 2.0, *[0.0] * 14)


def test_an_order_without_judgements_has_its_best_document(tmp_path):
    (example,) = ranked(tmp_path)
    assert is_order(example)
    assert judgements(example) == ()
    assert grades(example) == tuple(float(place == 6) for place in range(16))
    assert relevant_places(example, best=False) == [6]


def test_judgements_of_zeros_beside_an_order_name_nothing(tmp_path):
    (example,) = ranked(tmp_path, labels=[0] * 16)
    assert example.positive is None
    assert relevant_places(example) == [6]
    assert grades(example)[6] == 1.0


def test_grades_that_look_like_an_order_are_told_and_can_be_said_to_be_grades(tmp_path, caplog):
    line = {"query": "q", "documents": DOCUMENTS[:4], "labels": [4, 2, 3, 1]}
    path = tmp_path / "lists.jsonl"
    graded = {"query": "q", "documents": ["x", "y"], "labels": [2, 0]}
    path.write_text(json.dumps(graded) + "\n" + json.dumps(line) + "\n")
    examples = read_examples(path)
    assert [relevant_places(each) for each in examples] == [[0], [0]]
    assert "1 of the lines, the first is line 2, have labels that are 1 to n" in caplog.text
    caplog.clear()
    path.write_text(json.dumps({**line, "ranking": [1, 3, 2, 4]}) + "\n")
    (example,) = read_examples(path)
    assert relevant_places(example) == [0, 1, 2, 3]
    assert judgements(example) == (4, 2, 3, 1)
    assert not caplog.text


@pytest.mark.parametrize("labels", [(2, 1), (1, 2, 3), (1, 1, 0, 0), (1,), (4, 3, 2, 0), (5, 3, 2)])
def test_grades_are_grades(labels):
    documents = tuple(DOCUMENTS[: len(labels)])
    example = RankingExample("q", documents, tuple(map(float, labels)))
    assert not is_order(example)
    assert relevant_places(example) == [place for place, label in enumerate(labels) if label > 0]


def test_stage_1_draws_hard_negatives_from_an_order(tmp_path):
    (example,) = ranked(tmp_path)
    config = ContrastiveConfig(init_from="m", output="o", data=[{"path": "x"}], negatives=15)
    drawn = ContrastiveData(config, [[example]], {}).sample(example, random.Random(0))
    assert drawn.documents[0] == "document 6"
    assert set(drawn.documents[1:]) == set(DOCUMENTS) - {"document 6"}


def test_the_query_itself_stands_against_nothing():
    example = RankingExample("q r", ("a", "q  r\n", "b"), (1.0, 0.0, 0.0))
    assert other_places(example, [0]) == [2]
    judged = RankingExample("q", ("a", "q", "b"), (0.0, 1.0, 0.0))
    assert relevant_places(judged) == [1]
    assert other_places(judged, [1]) == [0, 2]


def test_a_list_is_left_without_the_query_itself(tmp_path):
    grown = [*DOCUMENTS[:3], "q", *DOCUMENTS[3:]]
    labels = [0, 2, 0, 0, *[0] * 13]
    line = {"query": "q", "documents": grown, "labels": labels, "ids": [*map(str, range(17))]}
    for more in ({}, {"ranking": [4, *range(1, 4), *range(5, 18)]}):
        (tmp_path / "lists.jsonl").write_text(json.dumps({**line, **more}) + "\n")
        (example,) = read_examples(tmp_path / "lists.jsonl")
        kept = without_query(example)
        assert kept.documents == tuple(DOCUMENTS)
        assert kept.ids == ("0", "1", "2", *map(str, range(4, 17)))
        assert relevant_texts(kept, best=False) == {"document 1"}
        assert is_order(kept) == bool(more)
        assert without_query(kept) is kept
    judged = RankingExample("q", ("a", "q"), (0.0, 1.0))
    assert without_query(judged) is judged


def test_the_best_of_an_order_is_not_the_query_itself(tmp_path):
    (example,) = ranked(tmp_path, query=DOCUMENTS[6])
    assert relevant_texts(example) == {"document 0"}
    kept = without_query(example)
    assert len(kept.documents) == 15
    assert is_order(kept)
    assert relevant_texts(kept) == {"document 0"}


def test_a_teacher_is_not_asked_about_the_query_itself(tmp_path):
    lists = [RankingExample("q", ("a", "q", "b"), (1.0, 0.0, 0.0))]
    asyncio.run(label_lists(lists, BackwardTeacher(), tmp_path / "labelled.jsonl"))
    (example,) = read_examples(tmp_path / "labelled.jsonl")
    assert example.documents == ("a", "b")
    assert example.judged == (1.0, 0.0)


@pytest.mark.parametrize("system", ["joint", "adapter", "resrank"])
def test_the_query_itself_is_not_a_wrong_answer_in_a_list(system, bert):
    asked = RankingExample("cats", ("cats purr", "cats", "dogs"), (1.0, 0.0, 0.0))
    batch = batch_of(system, [asked], bert)
    assert batch["relevance"].tolist() == [[1, 0]]  # RankNet does not push it down
    assert negatives(batch) == 1
    assert torch.equal(batch["counted"], torch.tensor([[False, True]]))


def test_the_query_itself_is_not_a_wrong_answer_in_the_list_of_another(bert):
    asked = RankingExample("cats  purr", ("cats", "dogs"), (1.0, 0.0))
    another = RankingExample("bread", ("cats purr ", "ferry"), (1.0, 0.0))
    config = ListwiseConfig.model_validate(
        {"init_from": "m", "output": "o", "mode": "joint", "data": [{"path": "x"}]}
    )
    data = ListwiseData(config, {None: bert.tokenizer})
    batch = data.collate([data.sample(each, random.Random(0)) for each in (asked, another)])
    # Rows: cats, dogs | cats purr, ferry.
    assert batch["counted"].tolist() == [[False, True, False, True], [True, True, False, True]]
