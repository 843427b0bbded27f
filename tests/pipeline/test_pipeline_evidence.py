"""The documents of both searches are one list, and their words are those of one list."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from e2rank_rag.evidence import CandidateWords, Evidence, joined
from e2rank_rag.feedback import Feedback
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import EvidenceReranker, ListwiseReranker
from e2rank_rag.rerankers.evidence import FEEDBACK
from e2rank_rag.types import Hit
from tests.encoders import CountingEncoder
from tests.kit import ids, same, scores
from tests.pipeline.conftest import DOCUMENTS, OTHER_QUERY, QUERY, TEXTS

EVIDENCE = Evidence(words=0.5, expansion=0.4)


def rerankers(encoder):
    return {
        "listwise": ListwiseReranker(encoder, evidence=EVIDENCE, feedback=Feedback()),
        "without feedback": ListwiseReranker(encoder, evidence=EVIDENCE),
        "without a prompt": EvidenceReranker(encoder, evidence=EVIDENCE),
    }


KINDS = ["listwise", "without feedback", "without a prompt"]


def expected(encoder, reranker, query, vector, hits):
    """The score of each document, as one list, given the reranking vector."""
    texts = [hit.document.text for hit in hits]
    vectors = encoder.encode_documents(texts)
    words = CandidateWords.of(query, texts, EVIDENCE.bm25)
    feedback = reranker.feedback or FEEDBACK
    known = feedback.evidence(words, vectors @ encoder.encode_queries([query])[0])
    values = joined(vectors @ vector, EVIDENCE.added(words, known))
    return dict(zip(ids(hits), values, strict=True))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_documents_of_both_searches_are_scored_as_one_list(encoder, store, kind, asynchronous):
    reranker = rerankers(encoder)[kind]
    pipeline = SearchPipeline(encoder, store, reranker)
    search = pipeline.asearch_batch if asynchronous else pipeline.search_batch
    # Four documents are retrieved and reranked; the second search adds some of the other four.
    found = search([QUERY, OTHER_QUERY], top_k=4, retrieve_k=4, expand=True)
    rankings = asyncio.run(found) if asynchronous else found
    plain = encoder.encode_queries([QUERY, OTHER_QUERY])
    first = store.search_batch(plain, top_k=4)
    vectors = reranker.rerank_batch([QUERY, OTHER_QUERY], first).vectors
    second = store.search_batch(vectors, top_k=4)
    for place, (query, hits) in enumerate(zip([QUERY, OTHER_QUERY], rankings, strict=True)):
        union = {hit.document.id: hit for hit in [*first[place], *second[place]]}
        values = expected(encoder, reranker, query, vectors[place], list(union.values()))
        best = sorted(values, key=lambda id: -values[id])[:4]
        assert ids(hits) == best
        assert scores(hits) == pytest.approx([values[id] for id in best], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_search_that_retrieves_nothing_new_changes_nothing(encoder, store, kind):
    reranker = rerankers(encoder)[kind]
    pipeline = SearchPipeline(encoder, store, reranker)
    assert same(pipeline.search(QUERY, expand=True), pipeline.search(QUERY))
    own = [Hit(document, 0.0) for document in DOCUMENTS]
    given = pipeline.search(QUERY, candidates=own, expand=True)
    assert same(given, pipeline.search(QUERY, candidates=own))
    assert pipeline.search(QUERY, filter={"kind": "mineral"}, expand=True) == []


def test_words_cost_no_encoding(encoder, store):
    counting = CountingEncoder(encoder)
    reranker = ListwiseReranker(counting, evidence=EVIDENCE, feedback=Feedback())
    SearchPipeline(counting, store, reranker).search(QUERY, top_k=4, retrieve_k=4, expand=True)
    assert counting.documents == []
    assert counting.queries == [QUERY]
    assert len(counting.prompts) == 1


def test_the_recipes_evidence_is_the_rerankers_default(encoder, store):
    recipe = encoder.recipe.model_copy(update={"evidence": EVIDENCE})
    with encoder.with_recipe(recipe) as own:
        assert own.fingerprint == encoder.fingerprint
        np.testing.assert_array_equal(own.encode_documents(TEXTS), encoder.encode_documents(TEXTS))
        for options in ({}, {"expand": True}):
            found = SearchPipeline(own, store, ListwiseReranker(own)).search(QUERY, **options)
            given = ListwiseReranker(encoder, evidence=EVIDENCE)
            assert same(found, SearchPipeline(encoder, store, given).search(QUERY, **options))
            plain = ListwiseReranker(own, evidence=False)
            bare = SearchPipeline(own, store, plain).search(QUERY, **options)
            assert scores(bare) != scores(found)
