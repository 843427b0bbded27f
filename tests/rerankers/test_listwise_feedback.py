"""What feedback changes in `ListwiseReranker`: which documents are shown, and the vector."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.evidence import CandidateWords
from e2rank_rag.feedback import Feedback
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.types import Document, Hit
from e2rank_rag.words import Bm25
from tests.encoders import TableEncoder

QUERY = "river ferry"
VECTORS = {
    QUERY: [1.0, 0.2, 0.0],
    f"listwise {QUERY}": [0.9, 0.3, 0.3],
    "a bridge of stone": [0.9, 0.1, 0.1],
    "the ferry crosses the river": [0.7, 0.4, 0.2],
    "a ferry": [0.5, 0.8, 0.1],
    "bread rises": [0.1, 0.1, 0.9],
}
TEXTS = [text for text in VECTORS if QUERY not in text]
FEEDBACK = Feedback(lexical_weight=1.0, temperature=0.5, weight=0.4)


def words_of(texts):
    return CandidateWords.of(QUERY, texts, Bm25())


def hits(encoder, scores=(0.9, 0.8, 0.7, 0.6)):
    vectors = encoder.encode_documents(TEXTS)
    return [
        Hit(Document(text, text), score, vector)
        for text, score, vector in zip(TEXTS, scores, vectors, strict=True)
    ]


def expected(encoder, feedback):
    """The order of the evidence, and the vector, from the parts."""
    vectors = encoder.encode_documents(TEXTS)
    (query,) = encoder.encode_queries([QUERY])
    evidence = feedback.evidence(words_of(TEXTS), vectors @ query)
    listwise = encoder.encode_listwise([QUERY], [TEXTS]).embeddings[0]
    vector = listwise + feedback.weight * feedback.mean(vectors, evidence)
    return [TEXTS[i] for i in np.argsort(-evidence)], vector / np.linalg.norm(vector)


def ids(ranking):
    return [hit.document.id for hit in ranking]


def test_the_prompt_shows_what_matches_in_meaning_and_words_and_the_mean_is_added():
    encoder = TableEncoder(VECTORS, feedback=FEEDBACK)
    best, vector = expected(encoder, FEEDBACK)
    assert best[0] == "the ferry crosses the river"  # of the plain cosines it is the second
    encoder.shown.clear()
    ranking = ListwiseReranker(encoder, prompt_depth=2).rerank(QUERY, hits(encoder))
    assert encoder.shown == [best[:2]]
    for hit in ranking:
        cosine = float(encoder.encode_documents([hit.document.text])[0] @ vector)
        assert hit.score == pytest.approx(cosine, abs=1e-6)


def test_how_candidates_were_found_and_scored_does_not_matter():
    encoder = TableEncoder(VECTORS, feedback=FEEDBACK)
    reranker = ListwiseReranker(encoder)
    found = hits(encoder)
    by_other = hits(encoder, scores=(float("nan"), -3.0, 12.0, 0.0))[::-1]
    assert ids(reranker.rerank(QUERY, found)) == ids(reranker.rerank(QUERY, by_other))


def test_the_score_before_the_reranking_stays():
    encoder = TableEncoder(VECTORS, feedback=FEEDBACK)
    ranking = ListwiseReranker(encoder, passes=2).rerank(QUERY, hits(encoder))
    assert {hit.document.id: hit.retrieval_score for hit in ranking} == dict(
        zip(TEXTS, (0.9, 0.8, 0.7, 0.6), strict=True)
    )


def test_a_reranker_may_have_feedback_of_its_own_or_none():
    best, _ = expected(TableEncoder(VECTORS), FEEDBACK)
    encoder = TableEncoder(VECTORS)
    ListwiseReranker(encoder, prompt_depth=2, feedback=FEEDBACK).rerank(QUERY, hits(encoder))
    assert encoder.shown == [best[:2]]
    encoder = TableEncoder(VECTORS, feedback=FEEDBACK)
    ListwiseReranker(encoder, prompt_depth=2, feedback=False).rerank(QUERY, hits(encoder))
    assert encoder.shown == [TEXTS[:2]]


def test_a_second_pass_weighs_by_the_cosines_of_the_first():
    encoder = TableEncoder(VECTORS, feedback=FEEDBACK)
    once = ListwiseReranker(encoder).rerank(QUERY, hits(encoder))
    evidence = FEEDBACK.evidence(words_of(ids(once)), np.array([hit.score for hit in once]))
    encoder.shown.clear()
    ListwiseReranker(encoder, passes=2).rerank(QUERY, hits(encoder))
    assert encoder.shown[1] == [ids(once)[i] for i in np.argsort(-evidence)]


def test_a_weight_of_zero_only_chooses_what_is_shown():
    chosen = FEEDBACK.model_copy(update={"weight": 0.0})
    encoder = TableEncoder(VECTORS, feedback=chosen)
    ranking = ListwiseReranker(encoder).rerank(QUERY, hits(encoder))
    listwise = encoder.encode_listwise([QUERY], [TEXTS]).embeddings[0]
    cosines = dict(zip(TEXTS, encoder.encode_documents(TEXTS) @ listwise, strict=True))
    assert {hit.document.id: hit.score for hit in ranking} == pytest.approx(cosines, abs=1e-6)


def test_a_query_without_candidates_costs_nothing():
    encoder = TableEncoder(VECTORS, feedback=FEEDBACK)
    assert ListwiseReranker(encoder, passes=2).rerank(QUERY, []) == []
    assert encoder.shown == []
