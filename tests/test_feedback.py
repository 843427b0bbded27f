"""Evidence is arithmetic on cosines and BM25; the mean vector is weighted by its softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from e2rank_rag.evidence import CandidateWords
from e2rank_rag.feedback import Feedback, order
from e2rank_rag.words import Bm25

TEXTS = ("cats purr", "dogs bark at cats", "a ferry crosses the water")


def words(query, texts=TEXTS):
    return CandidateWords.of(query, texts, Bm25())


def test_evidence_is_the_standardised_cosine_plus_the_weighted_standardised_bm25():
    cosines = np.array([0.1, 0.4, 0.7], np.float32)
    held = np.array([0.0, 0.0, 2.0])  # whatever the score of two words of one text is

    def standardised(values):
        return (values - values.mean()) / values.std()

    evidence = Feedback(lexical_weight=0.8).evidence(words("ferry water"), cosines)
    np.testing.assert_allclose(
        evidence, standardised(cosines) + 0.8 * standardised(held), rtol=1e-5
    )


def test_without_lexical_weight_evidence_keeps_the_order_of_the_cosines():
    evidence = Feedback(lexical_weight=0.0).evidence(words("cats"), np.array([0.2, 0.1, 0.3]))
    assert order(evidence) == [2, 0, 1]


def test_equal_candidates_share_the_weight_and_keep_their_order():
    feedback = Feedback()
    evidence = feedback.evidence(words("zebra"), np.full(3, 0.5, np.float32))
    assert order(evidence) == [0, 1, 2]
    vectors = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(feedback.mean(vectors, evidence), np.full(3, 1 / 3), rtol=1e-6)


def test_one_candidate_is_its_own_mean():
    evidence = Feedback().evidence(words("cats", TEXTS[:1]), np.array([0.5], np.float32))
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
