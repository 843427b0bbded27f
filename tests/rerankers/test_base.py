"""Strings as candidates, and the vectors that a reranking reports."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from e2rank_rag.rerankers import ListwiseReranker, RocchioReranker, load_reranker, score_by_vector
from e2rank_rag.types import Document, Hit

QUERY = "which animals purr?"
TEXTS = ["dogs bark and dig", "cats purr and sleep", "cats purr and sleep"]


@pytest.mark.parametrize("kind", [ListwiseReranker, RocchioReranker])
async def test_strings_are_candidates_whose_ids_are_their_places(bert, kind):
    reranker = kind(bert)
    as_hits = [Hit(Document(str(place), text), 0.0) for place, text in enumerate(TEXTS)]
    ranking = reranker.rerank(QUERY, TEXTS)
    assert [(h.document.id, h.score) for h in ranking] == [
        (h.document.id, h.score) for h in reranker.rerank(QUERY, as_hits)
    ]
    assert all(isnan(hit.retrieval_score) for hit in ranking)
    assert await reranker.arerank(QUERY, TEXTS) == ranking
    assert (await reranker.arerank_batch([QUERY], [TEXTS]))[0] == ranking


@pytest.mark.parametrize("candidates", ["cats", ["cats", Hit(Document("a", "dogs"), 0.0)]])
def test_one_string_and_a_mixed_list_are_refused(bert, candidates):
    with pytest.raises(ValueError, match=r"candidates must be"):
        ListwiseReranker(bert).rerank(QUERY, candidates)


@pytest.mark.parametrize("kind", [ListwiseReranker, RocchioReranker])
def test_the_vectors_of_a_reranking_are_those_that_score(bert, kind):
    plain = bert.encode_queries([QUERY, QUERY])
    given = kind(bert).rerank_batch([QUERY, QUERY], [TEXTS, []], query_vectors=plain)
    reranking = kind(bert).rerank_batch([QUERY, QUERY], [TEXTS, []])
    np.testing.assert_allclose(given.vectors, reranking.vectors, atol=1e-6)
    assert not reranking.vectors[1].any()
    for hit, again in zip(
        reranking[0], score_by_vector(reranking[0], reranking.vectors[0]), strict=True
    ):
        assert hit.score == pytest.approx(again.score, abs=1e-6)


def test_load_reranker_takes_an_open_encoder(tiny_bert, tiny_resrank, tiny_rankt5, bert, qwen3):
    assert load_reranker(tiny_bert, bert).encoder is bert
    assert load_reranker(tiny_resrank, bert).encoder is bert
    with pytest.raises(ValueError, match="leave it out"):
        load_reranker(tiny_rankt5, bert)
    for folder in (tiny_bert, tiny_resrank):
        with pytest.raises(ValueError, match="leave encoder"):
            load_reranker(folder, qwen3)
    with pytest.raises(ValueError, match="device"):
        load_reranker(tiny_bert, bert, device="cpu")
