"""Evidence is arithmetic on cosines and BM25; the mean vector is weighted by its softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from e2rank_rag.feedback import Feedback, lexical_scores, order

TEXTS = ("cats purr", "dogs bark at cats", "a ferry crosses the water")


def bm25(query, texts, *, k1=0.9, b=0.4):
    """Lucene's BM25 without its constant factor k1 + 1, word by word."""
    lists = [text.lower().split() for text in texts]
    mean_length = sum(map(len, lists)) / len(lists)
    scores = []
    for words in lists:
        score = 0.0
        for word in query.lower().split():
            holding = sum(word in other for other in lists)
            idf = math.log(1 + (len(lists) - holding + 0.5) / (holding + 0.5))
            count = words.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(words) / mean_length))
        scores.append(score)
    return scores


def test_lexical_scores_are_bm25_over_these_texts_alone():
    texts = ["cats purr", "dogs bark cats cats", "ferry crosses water"]
    found = lexical_scores("Cats ferry", texts)
    np.testing.assert_allclose(found, bm25("cats ferry", texts), rtol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("query", "texts"),
    [
        ("zebra", TEXTS),
        ("the", TEXTS),
        ("", TEXTS),
        ("猫", ["猫が好き", "犬"]),
        ("cats", ["the", "of"]),
        ("cats", ["!?"]),
    ],
)
def test_without_a_common_word_all_lexical_scores_are_zero(query, texts):
    np.testing.assert_array_equal(lexical_scores(query, texts), np.zeros(len(texts)))


def test_evidence_is_the_standardised_cosine_plus_the_weighted_standardised_bm25():
    cosines = np.array([0.1, 0.4, 0.7], np.float32)
    lexical = np.array(bm25("ferry water", TEXTS))

    def standardised(values):
        return (values - values.mean()) / values.std()

    evidence = Feedback(lexical_weight=0.8).evidence("ferry water", TEXTS, cosines)
    # "at", "a" and "the" are stop words: lengths differ, so the other texts' scores, which are 0,
    # stay 0, and one score above 0 is standardised alike whatever it is.
    np.testing.assert_allclose(
        evidence, standardised(cosines) + 0.8 * standardised(lexical), rtol=1e-5
    )


def test_without_lexical_weight_evidence_keeps_the_order_of_the_cosines():
    evidence = Feedback(lexical_weight=0.0).evidence("cats", TEXTS, np.array([0.2, 0.1, 0.3]))
    assert order(evidence) == [2, 0, 1]


def test_equal_candidates_share_the_weight_and_keep_their_order():
    feedback = Feedback()
    evidence = feedback.evidence("zebra", TEXTS, np.full(3, 0.5, np.float32))
    assert order(evidence) == [0, 1, 2]
    vectors = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(feedback.mean(vectors, evidence), np.full(3, 1 / 3), rtol=1e-6)


def test_one_candidate_is_its_own_mean():
    evidence = Feedback().evidence("cats", TEXTS[:1], np.array([0.5], np.float32))
    vector = np.array([[0.6, 0.8]], np.float32)
    np.testing.assert_array_equal(Feedback().mean(vector, evidence), vector[0])


def test_the_mean_weighs_by_the_softmax_at_the_temperature():
    evidence = np.array([1.0, 0.0], np.float32)
    mean = Feedback(temperature=0.5).mean(np.eye(2, dtype=np.float32), evidence)
    share = math.exp(2.0) / (math.exp(2.0) + 1.0)
    np.testing.assert_allclose(mean, [share, 1.0 - share], rtol=1e-6)


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"weight": -0.1}, {"lexical_weight": -1.0}, {"beta": 1.0}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValidationError):
        Feedback(**setting)
