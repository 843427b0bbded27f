"""Lists of passages: as retrieved, so that no place tells a label; padded where they are short."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from e2rank_rag.list_tokenization import ListTokenizer
from e2rank_rag.recipe import ResidualLayout
from e2rank_rag.training.config import ResRankConfig
from e2rank_rag.training.lists import ListDataset
from e2rank_rag.training.stages.resrank import ResRankData
from e2rank_rag.training.vectors import FrozenVectors, TextVectors
from e2rank_rag.types import RankingExample

EXAMPLE = RankingExample(
    query="cats",
    documents=("a", "b", "c", "d", "e", "f"),
    labels=(0.0, 2.0, 0.0, 1.0, 0.0, 3.0),
    positive=3,
)
SHORT = RankingExample(query="dogs and bread", documents=("g", "b"), labels=(0.0, 1.0))


def dataset(examples, **changes):
    config = ResRankConfig.model_validate(
        {"init_from": "x", "output": "x", "mode": "frozen", "data": [{"path": "x"}], **changes}
    )
    return ListDataset([examples], ResRankData(config, {}, {}).sample, seed=1)


def drawn_from(*examples):
    return [dataset([example])[0, 0] for example in examples]


def data(bert, reader, frozen=None):
    config = ResRankConfig(init_from="x", output="x", mode="frozen", data=[{"path": "x"}])
    return ResRankData(config, {None: bert.tokenizer}, {None: reader}, frozen)


def test_a_list_keeps_the_order_of_the_retrieval():
    (drawn,) = [dataset([EXAMPLE], list_size=4)[0, 0]]
    # The first two relevant ones and the first two others, where they stood.
    assert drawn.documents == ("a", "b", "c", "d")
    assert drawn.labels == (0.0, 2.0, 0.0, 1.0)
    assert drawn.positive == 1
    assert drawn.relevant == {"b", "d", "f"}


def test_the_positive_may_be_the_known_one():
    assert dataset([EXAMPLE], list_size=4, positive="known")[0, 0].positive == 3


def test_shuffled_lists_are_shuffled_anew_in_each_epoch_and_stay_the_same_lists():
    lists = dataset([EXAMPLE], list_size=6, order="shuffled")
    seen = set()
    for epoch in range(8):
        drawn = lists[epoch, 0]
        assert drawn == lists[epoch, 0]
        seen.add(drawn.documents)
        assert dict(zip(drawn.documents, drawn.labels, strict=True)) == dict(
            zip(EXAMPLE.documents, EXAMPLE.labels, strict=True)
        )
        assert drawn.documents[drawn.positive] == "f"
    assert len(seen) > 4


@pytest.fixture
def reader(bert):
    return ListTokenizer(bert.tokenizer, ResidualLayout(), limit=128)


def test_frozen_batches_hold_vectors_and_joint_ones_tokens(bert, reader):
    texts = [*EXAMPLE.documents, *SHORT.documents]
    known, asked = TextVectors(32), TextVectors(32)
    known.encode(texts, bert.encode_documents)
    asked.encode([EXAMPLE.query, SHORT.query], bert.encode_queries)
    lists = drawn_from(EXAMPLE, SHORT)
    frozen = data(bert, reader, FrozenVectors(known, {None: asked})).collate(lists)
    np.testing.assert_array_equal(frozen["document_vectors"][0], known.of(EXAMPLE.documents))
    np.testing.assert_array_equal(frozen["document_vectors"][1, :2], known.of(SHORT.documents))
    np.testing.assert_array_equal(frozen["query_vectors"], asked.of([EXAMPLE.query, SHORT.query]))
    joint = data(bert, reader).collate(lists)
    assert joint["documents"]["input_ids"].shape[0] == 12
    assert joint["queries"]["input_ids"].shape[0] == 2
    for batch in (frozen, joint):
        assert batch["listed"].tolist() == [[True] * 6, [True] * 2 + [False] * 4]
        assert batch["relevance"].tolist() == [[0, 2, 0, 1, 0, 3], [0, 1, 0, 0, 0, 0]]
        assert batch["positives"].tolist() == [5, 6 + 1]
        assert batch["lists"]["passage_places"].sum(1).tolist() == [6, 6]


def test_what_answers_a_query_in_another_list_is_no_negative_of_it(bert, reader):
    lists = drawn_from(EXAMPLE, SHORT)
    batch = data(bert, reader).collate(lists)
    texts = [*EXAMPLE.documents, *SHORT.documents, "", "", "", ""]
    first = [text not in ("b", "d", "f", "") for text in texts]
    second = [text not in ("b", "") for text in texts]
    assert torch.equal(batch["counted"], torch.tensor([first, second]))
