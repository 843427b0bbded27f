"""Explained searches: the same rankings, with a second search and without."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import EvidenceReranker, ListwiseReranker, RocchioReranker
from tests.kit import ids, scores
from tests.pipeline.conftest import OTHER_QUERY, QUERY

RERANKERS = {
    "listwise": lambda encoder: ListwiseReranker(
        encoder, evidence=Evidence(words=0.5, expansion=0.4), feedback=Feedback(), query_weight=0.4
    ),
    "without a prompt": EvidenceReranker,
    "rocchio": RocchioReranker,
}


@pytest.mark.parametrize("kind", RERANKERS)
def test_a_document_of_the_second_search_is_explained_and_has_no_rank_before(encoder, store, kind):
    reranker = RERANKERS[kind](encoder)
    pipeline = SearchPipeline(encoder, store, reranker)
    options = {"top_k": 4, "retrieve_k": 4, "expand": True}
    plain = pipeline.search_batch([QUERY, OTHER_QUERY], **options)
    rankings = pipeline.search_batch([QUERY, OTHER_QUERY], **options, explain=True)
    assert rankings == plain
    first = store.search_batch(encoder.encode_queries([QUERY, OTHER_QUERY]), top_k=4)
    for found, ranking in zip(first, rankings, strict=True):
        before = {hit.document.id: rank for rank, hit in enumerate(found, start=1)}
        for place, hit in enumerate(ranking, start=1):
            told = hit.explanation
            assert told.rank == place
            assert told.rank_before == before.get(hit.document.id)
            assert (told.score_before is None) == (told.rank_before is None)
            assert told.parts.score == pytest.approx(hit.score, abs=1e-6)


def test_the_score_before_is_the_searchs_and_ranks_count_all_candidates(encoder, store):
    pipeline = SearchPipeline(encoder, store, RERANKERS["listwise"](encoder))
    found = store.search(encoder.encode_queries([QUERY])[0], top_k=8)
    whole = pipeline.search(QUERY, top_k=8, explain=True)
    best = pipeline.search(QUERY, top_k=2, explain=True)
    assert best == whole[:2]
    assert [hit.explanation for hit in best] == [hit.explanation for hit in whole[:2]]
    before = {hit.document.id: hit.score for hit in found}
    for hit in whole:
        assert hit.explanation.score_before == pytest.approx(before[hit.document.id], abs=1e-6)
        assert hit.explanation.cosine == pytest.approx(before[hit.document.id], abs=1e-5)
    average = whole[0].explanation.average
    assert average.score == pytest.approx(np.mean(scores(whole)), abs=1e-6)


@pytest.mark.parametrize("expand", [False, True])
def test_async_searches_explain_alike(encoder, store, expand):
    pipeline = SearchPipeline(encoder, store, RERANKERS["listwise"](encoder))
    options = {"top_k": 4, "retrieve_k": 4, "expand": expand, "explain": True}
    ranking = pipeline.search(QUERY, **options)
    again = asyncio.run(pipeline.asearch(QUERY, **options))
    assert ids(again) == ids(ranking)
    assert [hit.explanation for hit in again] == [hit.explanation for hit in ranking]


def test_without_a_reranker_of_this_package_there_is_nothing_to_explain(encoder, store):
    with pytest.raises(ValueError, match="this pipeline has none"):
        SearchPipeline(encoder, store).search(QUERY, explain=True)
    with pytest.raises(ValueError, match="this pipeline has str"):
        SearchPipeline(encoder, store, "theirs").search(QUERY, explain=True)
