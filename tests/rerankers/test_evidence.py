"""The last step of the score, in every reranker that has it, against the parts put together."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.evidence import CandidateWords, Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.rerankers import (
    EvidenceReranker,
    ListwiseReranker,
    RocchioReranker,
    Window,
    score_by_vector,
)
from e2rank_rag.rerankers.evidence import FEEDBACK
from e2rank_rag.types import Document, Hit
from tests.encoders import CountingEncoder, TableEncoder
from tests.kit import ids, scores
from tests.rerankers.ferries import EVIDENCE, OWN, QUERY, TEXTS, VECTORS


def hits(encoder, values=(0.9, 0.8, 0.7, 0.6, 0.5)):
    vectors = encoder.encode_documents(TEXTS)
    return [
        Hit(Document(text, text), value, vector)
        for text, value, vector in zip(TEXTS, values, vectors, strict=True)
    ]


def deviations(values):
    spread = values.std()
    return (values - values.mean()) / spread if spread else np.zeros_like(values)


def expected(encoder, vector, *, evidence=EVIDENCE, feedback=OWN, texts=TEXTS):
    """The score of each text, given the reranking vector."""
    vectors = encoder.encode_documents(texts)
    (query,) = encoder.encode_queries([QUERY])
    words = CandidateWords.of(QUERY, texts, evidence.bm25)
    lexical = words.scores()
    known = deviations(vectors @ query) + feedback.lexical_weight * deviations(lexical)
    expanded = words.expansion(
        known, documents=evidence.expansion_documents, terms=evidence.expansion_terms
    )
    cosines = vectors @ vector
    added = evidence.words * deviations(lexical) + evidence.expansion * deviations(expanded)
    return dict(zip(texts, cosines + cosines.std() * added, strict=True))


def unit(vector):
    return vector / np.linalg.norm(vector)


def fed_back(encoder, start, cosines, feedback):
    """A vector plus the mean of the candidates' vectors."""
    words = CandidateWords.of(QUERY, TEXTS, EVIDENCE.bm25)
    known = feedback.evidence(words, cosines)
    mean = feedback.mean(encoder.encode_documents(TEXTS), known)
    return unit(start + feedback.weight * mean)


def scored(ranking):
    return {hit.document.id: hit.score for hit in ranking}


def test_without_a_prompt_the_query_is_moved_by_feedback_and_words_add_to_the_cosines():
    encoder = TableEncoder(VECTORS)
    (query,) = encoder.encode_queries([QUERY])
    vector = fed_back(encoder, query, encoder.encode_documents(TEXTS) @ query, FEEDBACK)
    reranking = EvidenceReranker(encoder).rerank_batch([QUERY], [hits(encoder)])
    np.testing.assert_allclose(reranking.vectors, [vector], atol=1e-6)
    found = expected(encoder, vector, evidence=Evidence(), feedback=FEEDBACK)
    assert scored(reranking[0]) == pytest.approx(found, abs=1e-6)
    assert ids(reranking[0]) == sorted(TEXTS, key=lambda text: -found[text])
    assert encoder.shown == []
    assert reranking.report.prompts == ()


def test_its_settings_are_its_own_and_not_the_recipes():
    encoder = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    plain = EvidenceReranker(TableEncoder(VECTORS)).rerank(QUERY, hits(encoder))
    assert EvidenceReranker(encoder).rerank(QUERY, hits(encoder)) == plain
    given = EvidenceReranker(TableEncoder(VECTORS), evidence=EVIDENCE, feedback=OWN)
    own = given.rerank(QUERY, hits(encoder))
    assert scores(own) != scores(plain)


def test_without_a_prompt_only_the_query_is_encoded(bert):
    counting = CountingEncoder(bert)
    vectors = bert.encode_documents(TEXTS)
    own = [
        Hit(Document(text, text), 0.0, vector, fingerprint=bert.fingerprint)
        for text, vector in zip(TEXTS, vectors, strict=True)
    ]
    EvidenceReranker(counting).rerank(QUERY, own)
    assert (counting.queries, counting.prompts, counting.documents) == ([QUERY], [], [])


@pytest.mark.parametrize("feedback", [OWN, None])
def test_a_listwise_score_is_the_cosine_joined_by_the_words_of_the_list(feedback):
    encoder = TableEncoder(VECTORS, feedback=feedback, evidence=EVIDENCE)
    reranking = ListwiseReranker(encoder).rerank_batch([QUERY], [hits(encoder)])
    listwise = encoder.encode_listwise([QUERY], [TEXTS]).embeddings[0]
    (query,) = encoder.encode_queries([QUERY])
    vector = listwise
    if feedback is not None:
        vector = fed_back(encoder, listwise, encoder.encode_documents(TEXTS) @ query, feedback)
    np.testing.assert_allclose(reranking.vectors, [vector], atol=1e-6)
    found = expected(encoder, vector, feedback=feedback or FEEDBACK)
    assert scored(reranking[0]) == pytest.approx(found, abs=1e-6)
    shown = encoder.shown[0]
    assert shown == TEXTS if feedback is None else shown[0] == "the ferry crosses the river"


def test_a_reranker_may_have_evidence_of_its_own_or_none():
    with_own = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    without = TableEncoder(VECTORS, feedback=OWN)
    cosines = ListwiseReranker(without).rerank(QUERY, hits(without))
    joined = ListwiseReranker(with_own).rerank(QUERY, hits(without))
    assert scores(joined) != scores(cosines)
    assert ListwiseReranker(with_own, evidence=False).rerank(QUERY, hits(without)) == cosines
    assert ListwiseReranker(without, evidence=EVIDENCE).rerank(QUERY, hits(without)) == joined


@pytest.mark.parametrize("kind", [ListwiseReranker, EvidenceReranker])
def test_how_candidates_were_found_and_scored_does_not_matter(kind):
    encoder = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    by_other = hits(encoder, values=(float("nan"), -3.0, 12.0, 0.0, 5.0))[::-1]
    ranking = kind(encoder).rerank(QUERY, hits(encoder))
    again = kind(encoder).rerank(QUERY, by_other)
    assert (ids(again), scores(again)) == (ids(ranking), scores(ranking))
    kept = {hit.document.id: hit.retrieval_score for hit in ranking}
    assert kept == dict(zip(TEXTS, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))


def test_words_count_once_however_many_passes():
    """The second pass weighs by the cosines of the first, not by its scores."""
    encoder = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    (first,) = ListwiseReranker(encoder).rerank_batch([QUERY], [hits(encoder)]).vectors
    listwise = encoder.encode_listwise([QUERY], [TEXTS]).embeddings[0]
    vector = fed_back(encoder, listwise, encoder.encode_documents(TEXTS) @ first, OWN)
    twice = ListwiseReranker(encoder, passes=2).rerank_batch([QUERY], [hits(encoder)])
    np.testing.assert_allclose(twice.vectors, [vector], atol=1e-6)
    assert scored(twice[0]) == pytest.approx(expected(encoder, vector), abs=1e-6)


def test_without_feedback_the_second_prompt_shows_the_order_of_the_scores():
    encoder = TableEncoder(VECTORS, evidence=Evidence(words=2.0))
    once = ListwiseReranker(encoder).rerank(QUERY, hits(encoder))
    cosines = ListwiseReranker(encoder, evidence=False).rerank(QUERY, hits(encoder))
    assert ids(once) != ids(cosines)
    encoder.shown.clear()
    ListwiseReranker(encoder, passes=2).rerank(QUERY, hits(encoder))
    assert encoder.shown == [TEXTS, ids(once)]


def test_in_a_window_the_list_is_the_window():
    encoder = TableEncoder(VECTORS, evidence=EVIDENCE)
    listwise = encoder.encode_listwise([QUERY], [TEXTS]).embeddings[0]
    window = Window(3, 2)
    last = expected(encoder, listwise, feedback=FEEDBACK, texts=TEXTS[2:])
    order = TEXTS[:2] + sorted(TEXTS[2:], key=lambda text: -last[text])
    first = expected(encoder, listwise, feedback=FEEDBACK, texts=order[:3])
    reranking = ListwiseReranker(encoder, window=window).rerank_batch([QUERY], [hits(encoder)])
    assert reranking.vectors is None
    best = sorted(order[:3], key=lambda text: -first[text])
    assert ids(reranking[0]) == best + order[3:]
    assert scores(reranking[0])[:3] == pytest.approx([first[text] for text in best], abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        ListwiseReranker,
        EvidenceReranker,
        RocchioReranker,
        lambda encoder: ListwiseReranker(encoder, evidence=False),
        lambda encoder: ListwiseReranker(encoder, feedback=False),
        lambda encoder: ListwiseReranker(encoder, passes=2),
    ],
)
def test_score_gives_what_the_reranking_gave_for_its_vectors(make):
    encoder = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    reranker = make(encoder)
    reranking = reranker.rerank_batch([QUERY, QUERY], [hits(encoder), []])
    plain = encoder.encode_queries([QUERY, QUERY])
    for options in ({}, {"query_vectors": plain}):
        for lists in (reranking, [hits(encoder), []]):
            again = reranker.score([QUERY, QUERY], lists, reranking.vectors, **options)
            assert ids(again[0]) == ids(reranking[0])
            assert scores(again[0]) == scores(reranking[0])
            assert again[1] == []
    for hit, first in zip(reranking[0], again[0], strict=True):
        assert hit.retrieval_score == first.retrieval_score


@pytest.mark.parametrize("kind", [ListwiseReranker, EvidenceReranker])
@pytest.mark.parametrize("texts", [["猫が好きです。", "犬が好きだ", "鳥が飛ぶ"], ["x", "!?", " "]])
def test_texts_without_common_words_are_ranked_by_cosine(bert, kind, texts):
    reranker = kind(bert) if kind is EvidenceReranker else kind(bert, evidence=Evidence())
    reranking = reranker.rerank_batch(["猫"], [texts])
    (vector,) = reranking.vectors
    assert scores(reranking[0]) == scores(score_by_vector(reranking[0], vector))


@pytest.mark.parametrize("evidence", [None, False])
def test_the_recipes_language_splits_the_words_of_feedback_too(evidence):
    texts = ["bread rises", "the sun rises", "a ferry"]
    table = {"ferries": [1.0, 0.2], "listwise ferries": [0.9, 0.3]}
    table |= dict(zip(texts, ([0.9, 0.1], [0.8, 0.3], [0.7, 0.4]), strict=True))
    best = []
    for language in ("english", None):
        own = Evidence(language=language)
        encoder = TableEncoder(table, feedback=Feedback(lexical_weight=3.0), evidence=own)
        ListwiseReranker(encoder, evidence=evidence).rerank("ferries", texts)
        best.append(encoder.shown[0][0])
    assert best == ["a ferry", "bread rises"]
