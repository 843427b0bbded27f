"""Explanations: what the parts of a score are, and that they sum to it."""

from __future__ import annotations

import json
from math import nan

import numpy as np
import pytest

from e2rank_rag.evidence import CandidateWords
from e2rank_rag.explanation import Parts
from e2rank_rag.rerankers import (
    EvidenceReranker,
    ListwiseReranker,
    RocchioReranker,
    Window,
    load_reranker,
)
from e2rank_rag.types import Document, Hit
from tests.encoders import TableEncoder
from tests.kit import scores
from tests.rerankers.ferries import EVIDENCE, OWN, QUERY, TEXTS, VECTORS

MAKES = {
    "listwise": lambda encoder: ListwiseReranker(encoder, feedback=OWN, evidence=EVIDENCE),
    "blended": lambda encoder: ListwiseReranker(
        encoder, feedback=OWN, evidence=EVIDENCE, query_weight=0.3, prompt_depth=2
    ),
    "without feedback": lambda encoder: ListwiseReranker(encoder, evidence=EVIDENCE),
    "without words": lambda encoder: ListwiseReranker(encoder, feedback=OWN, query_weight=0.7),
    "bare": lambda encoder: ListwiseReranker(encoder, query_weight=0.5),
    "two passes": lambda encoder: ListwiseReranker(
        encoder, feedback=OWN, evidence=EVIDENCE, passes=2
    ),
    "no prompt": lambda encoder: ListwiseReranker(encoder, evidence=EVIDENCE, query_weight=1.0),
    "evidence": EvidenceReranker,
    "rocchio": lambda encoder: RocchioReranker(encoder, feedback_documents=2, beta=0.7),
}


def hits(encoder, values=(0.5, 0.6, 0.7, 0.8, 0.9)):
    vectors = encoder.encode_documents(TEXTS)
    return [
        Hit(Document(text, text), value, vector)
        for text, value, vector in zip(TEXTS, values, vectors, strict=True)
    ]


def deviations(values):
    return (values - values.mean()) / values.std()


def by_id(ranking):
    return {hit.document.id: hit.explanation for hit in ranking}


@pytest.mark.parametrize("model", ["bert", "qwen3"])
@pytest.mark.parametrize("kind", MAKES)
def test_the_parts_sum_to_the_score_that_the_reranker_gives_anyway(request, kind, model):
    reranker = MAKES[kind](request.getfixturevalue(model))
    plain = reranker.rerank_batch([QUERY, "bread", "ice"], [TEXTS, TEXTS[:1], []])
    reranking = reranker.rerank_batch([QUERY, "bread", "ice"], [TEXTS, TEXTS[:1], []], explain=True)
    assert reranking == plain
    np.testing.assert_array_equal(reranking.vectors, plain.vectors)
    assert (plain.made, reranking.made[2]) == ((), None)
    for ranking in reranking:
        for place, hit in enumerate(ranking, start=1):
            told = hit.explanation
            assert (told.rank, told.score) == (place, hit.score)
            assert told.parts.score == pytest.approx(hit.score, abs=1e-6)
            assert told.average.score == pytest.approx(np.mean(scores(ranking)), abs=1e-6)
            if kind != "blended":  # whose prompt shows two documents of five
                given = sum(pull.part for pull in told.pulls)
                assert given == pytest.approx(told.parts.feedback, abs=1e-6)
    assert all(hit.explanation is None for ranking in plain for hit in ranking)


def test_each_part_is_what_its_summand_gives():
    encoder = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    ranking = ListwiseReranker(encoder, prompt_depth=2).rerank(QUERY, hits(encoder), explain=True)
    vectors = encoder.encode_documents(TEXTS)
    (query,) = encoder.encode_queries([QUERY])
    prompt = encoder.encode_listwise([QUERY], [TEXTS]).embeddings[0]
    counted = CandidateWords.of(QUERY, TEXTS, EVIDENCE.bm25)
    lexical = counted.scores()
    known = deviations(vectors @ query) + deviations(lexical)
    shares = np.exp(known / 0.5) / np.exp(known / 0.5).sum()
    length = np.linalg.norm(prompt + 0.4 * shares @ vectors)
    spread = (vectors @ (prompt + 0.4 * shares @ vectors) / length).std()
    expanded = counted.expansion(known, documents=3, terms=3)
    shown = [TEXTS[place] for place in np.argsort(-known)[:2]]
    for row, text in enumerate(TEXTS):
        told = by_id(ranking)[text]
        assert told.parts.query == 0.0
        assert told.parts.prompt == pytest.approx(vectors[row] @ prompt / length, abs=1e-6)
        pulled = 0.4 * shares * (vectors @ vectors[row]) / length
        assert told.parts.feedback == pytest.approx(pulled.sum(), abs=1e-6)
        assert told.parts.words == pytest.approx(spread * 0.4 * deviations(lexical)[row], abs=1e-6)
        added = spread * 0.2 * deviations(expanded)[row]
        assert told.parts.expansion == pytest.approx(added, abs=1e-6)
        assert told.cosine == pytest.approx(vectors[row] @ query, abs=1e-6)
        assert [pull.id for pull in told.pulls] == shown
        for pull in told.pulls:
            other = TEXTS.index(pull.id)
            assert pull.in_prompt
            assert pull.weight == pytest.approx(shares[other], abs=1e-6)
            assert pull.cosine == pytest.approx(vectors[row] @ vectors[other], abs=1e-6)
            assert pull.part == pytest.approx(pulled[other], abs=1e-6)
    means = np.mean([told.parts.values() for told in by_id(ranking).values()], axis=0)
    for told in by_id(ranking).values():
        assert told.average.values() == pytest.approx(means)


def test_a_blend_is_split_into_query_and_prompt(bert):
    reranker = ListwiseReranker(bert, query_weight=0.3)
    told = by_id(reranker.rerank(QUERY, TEXTS, explain=True))
    (query,) = bert.encode_queries([QUERY])
    prompt = bert.encode_listwise([QUERY], [TEXTS], query_weight=0.0).embeddings[0]
    length = np.linalg.norm(0.3 * query + 0.7 * prompt)
    for place, vector in enumerate(bert.encode_documents(TEXTS)):
        parts = told[str(place)].parts
        assert parts.query == pytest.approx(0.3 * vector @ query / length, abs=1e-6)
        assert parts.prompt == pytest.approx(0.7 * vector @ prompt / length, abs=1e-6)
        assert parts.values()[2:] == [0.0, 0.0, 0.0]


def test_without_a_prompt_the_heaviest_documents_of_the_mean_are_named():
    encoder = TableEncoder(VECTORS)
    ranking = EvidenceReranker(encoder).rerank(QUERY, hits(encoder), explain=True)
    pulls = ranking[0].explanation.pulls
    weights = [pull.weight for pull in pulls]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1.0)  # of five candidates all are named
    assert not any(pull.in_prompt for pull in pulls)
    rocchio = RocchioReranker(encoder, feedback_documents=2).rerank(
        QUERY, hits(encoder), explain=True
    )
    found = [(pull.id, pull.weight) for pull in rocchio[0].explanation.pulls]
    assert found == [(TEXTS[0], 0.5), (TEXTS[1], 0.5)]


def test_words_are_the_querys_stems_in_the_document_and_sum_to_its_bm25():
    encoder = TableEncoder(VECTORS, evidence=EVIDENCE)
    told = by_id(ListwiseReranker(encoder).rerank(QUERY, hits(encoder), explain=True))
    lexical = CandidateWords.of(QUERY, TEXTS, EVIDENCE.bm25).scores()
    assert list(told["the ferry crosses the river"].words) == ["river", "ferri"]
    assert list(told["a ferry with an engine"].words) == ["ferri"]
    assert told["bread rises"].words == {}
    for text, score in zip(TEXTS, lexical, strict=True):
        assert sum(told[text].words.values()) == pytest.approx(score, abs=1e-6)
    # The one word beyond the query that two candidates share.
    assert list(told["the engine of a tram"].expansion_words) == ["engin"]
    assert told["bread rises"].expansion_words == {}


def test_an_explanation_knows_the_rank_and_score_that_the_reranker_got():
    encoder = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    reranker = ListwiseReranker(encoder)
    first = reranker.rerank(QUERY, hits(encoder), explain=True)
    before = {text: (rank, 0.4 + rank / 10) for rank, text in enumerate(TEXTS, start=1)}
    for text, told in by_id(first).items():
        assert (told.rank_before, told.score_before) == pytest.approx(before[text])
    second = RocchioReranker(encoder).rerank(QUERY, first, explain=True)
    for hit, rank in zip(first, range(1, 6), strict=True):
        told = by_id(second)[hit.document.id]
        assert (told.rank_before, told.score_before) == (rank, hit.score)
    assert [hit.explanation for hit in reranker.rerank(QUERY, first)] == [None] * 5
    unscored = by_id(reranker.rerank(QUERY, hits(encoder, [nan] * 5), explain=True))
    assert {told.score_before for told in unscored.values()} == {None}


@pytest.mark.parametrize("kind", ["tiny_resrank", "tiny_rankt5", "windows"])
def test_scores_that_are_no_sums_have_ranks_only(request, kind):
    if kind == "windows":
        bert = request.getfixturevalue("bert")
        reranker = ListwiseReranker(bert, evidence=EVIDENCE, window=Window(3, 2))
    else:
        reranker = load_reranker(request.getfixturevalue(kind), device="cpu")
    ranking = reranker.rerank(QUERY, TEXTS, explain=True)
    assert ranking == reranker.rerank(QUERY, TEXTS)
    if kind != "windows":
        reranker.close()
    for place, hit in enumerate(ranking, start=1):
        told = hit.explanation
        assert (told.rank, told.rank_before) == (place, int(hit.document.id) + 1)
        assert told.score == hit.score
        assert (told.parts, told.average, told.cosine) == (None, None, None)
        assert (told.pulls, told.words, told.expansion_words) == ((), {}, {})


def test_json_holds_an_explanation_as_it_is():
    encoder = TableEncoder(VECTORS, feedback=OWN, evidence=EVIDENCE)
    told = ListwiseReranker(encoder).rerank(QUERY, hits(encoder), explain=True)[0].explanation
    data = told.as_dict()
    assert json.loads(json.dumps(data)) == data
    assert Parts(**data["parts"]) == told.parts
    assert [pull["id"] for pull in data["pulls"]] == [pull.id for pull in told.pulls]
    assert data["words"] == told.words


async def test_async_calls_explain_too(bert):
    reranker = MAKES["listwise"](bert)
    ranking = reranker.rerank(QUERY, TEXTS, explain=True)
    again = await reranker.arerank(QUERY, TEXTS, explain=True)
    (batch,) = await reranker.arerank_batch([QUERY], [TEXTS], explain=True)
    for other in (again, batch):
        assert other == ranking
        assert by_id(other) == by_id(ranking)
