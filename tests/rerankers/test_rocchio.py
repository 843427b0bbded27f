"""RocchioReranker, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.rerankers import RocchioReranker
from e2rank_rag.types import Document, Hit
from tests.encoders import CountingEncoder, TableEncoder

QUERY = "Which animals purr, and which ones bark?"
SQUARE = TableEncoder({"q": [1, 0], "up": [0, 1], "right": [1, 0], "down": [0, -1]})


def square_hits(*texts):
    return [Hit(Document(text, text), 0.0) for text in texts]


def test_rocchio_adds_beta_times_the_mean_of_the_first_vectors():
    # q + 0.5 * mean(up, right) = (1 + 0.25, 0.25); its length is sqrt(1.25^2 + 0.25^2).
    reranker = RocchioReranker(SQUARE, feedback_documents=2, beta=0.5)
    ranking = reranker.rerank("q", square_hits("up", "right", "down"))
    length = np.hypot(1.25, 0.25)
    assert [(h.document.id, h.score) for h in ranking] == [
        ("right", pytest.approx(1.25 / length)),
        ("up", pytest.approx(0.25 / length)),
        ("down", pytest.approx(-0.25 / length)),
    ]


def test_rocchio_takes_the_vectors_there_are():
    # One candidate where three are asked for: (1, 0) + (0, 1), whose cosine with up is sqrt(1/2).
    (hit,) = RocchioReranker(SQUARE, beta=1.0).rerank("q", square_hits("up"))
    assert hit.score == pytest.approx(np.sqrt(0.5))


def test_rocchio_with_beta_zero_is_the_plain_query():
    ranking = RocchioReranker(SQUARE, beta=0.0).rerank("q", square_hits("up", "down", "right"))
    assert [(h.document.id, h.score) for h in ranking] == [("right", 1.0), ("up", 0), ("down", 0)]


def test_rocchio_makes_no_prompt(bert):
    counting = CountingEncoder(bert)
    reranking = RocchioReranker(counting).rerank_batch([QUERY], [square_hits("up", "down")])
    assert counting.prompts == []
    assert reranking.report.prompts == ()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"feedback_documents": 0}, "feedback_documents must be 1 or more, got 0"),
        ({"beta": -0.1}, "beta must be 0 or more, got -0.1"),
    ],
)
def test_rocchio_options_are_checked(option, message):
    with pytest.raises(ValueError, match=message):
        RocchioReranker(SQUARE, **option)
