"""Searches of a pipeline by vector and words, over a real store in memory."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from e2rank_rag.errors import CollectionMissing, StoreError
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Hit
from e2rank_rag.words import Bm25
from tests.encoders import CountingEncoder
from tests.kit import filled_store, ids, same
from tests.pipeline.conftest import DOCUMENTS, OTHER_QUERY, QUERY

QUERIES = [QUERY, OTHER_QUERY]


@pytest.fixture
def store(bert):
    store = filled_store(bert, DOCUMENTS, bm25=Bm25())
    yield store
    store.close()


@pytest.fixture
def dense(bert):
    store = filled_store(bert, DOCUMENTS)
    yield store
    store.close()


def answered(pipeline, queries, *, asynchronous, **options):
    if asynchronous:
        return asyncio.run(pipeline.asearch_batch(queries, **options))
    return pipeline.search_batch(queries, **options)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("hybrid", [None, True, "rrf", "dbsf"])
def test_without_a_reranker_it_is_the_stores_hybrid_search(bert, store, hybrid, asynchronous):
    pipeline = SearchPipeline(bert, store)
    found = answered(pipeline, QUERIES, asynchronous=asynchronous, top_k=3, hybrid=hybrid)
    fusion = "dbsf" if hybrid == "dbsf" else "rrf"
    expected = store.search_batch(
        bert.encode_queries(QUERIES), top_k=3, queries=QUERIES, fusion=fusion
    )
    assert all(map(same, found, expected))
    assert all(hit.embedding is not None for hits in found for hit in hits)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_hybrid_false_is_the_search_by_vector(bert, store, dense, asynchronous):
    options = {"asynchronous": asynchronous, "top_k": 4}
    found = answered(SearchPipeline(bert, store), QUERIES, hybrid=False, **options)
    assert found == [
        [Hit(hit.document, hit.score) for hit in hits]
        for hits in answered(SearchPipeline(bert, dense), QUERIES, **options)
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_reranker_gets_the_fused_candidates(bert, store, asynchronous):
    reranker = ListwiseReranker(bert)
    vectors = bert.encode_queries(QUERIES)
    candidates = store.search_batch(vectors, top_k=4, queries=QUERIES)
    assert candidates != store.search_batch(vectors, top_k=4)
    options = {"top_k": 3, "retrieve_k": 4}
    pipeline = SearchPipeline(bert, store, reranker)
    found = answered(pipeline, QUERIES, asynchronous=asynchronous, **options)
    for hits, expected in zip(found, reranker.rerank_batch(QUERIES, candidates), strict=True):
        assert same(hits, expected[:3])
        before = [hit.retrieval_score for hit in expected[:3]]
        assert [hit.retrieval_score for hit in hits] == pytest.approx(before)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_second_search_of_expand_is_hybrid_too(bert, store, monkeypatch, asynchronous):
    asked = []
    method = "asearch_batch" if asynchronous else "search_batch"
    search = getattr(store, method)
    monkeypatch.setattr(
        store, method, lambda *args, **given: (asked.append(given), search(*args, **given))[1]
    )
    pipeline = SearchPipeline(bert, store, ListwiseReranker(bert))
    options = {"top_k": 3, "retrieve_k": 4, "expand": True, "hybrid": "dbsf"}
    answered(pipeline, QUERIES, asynchronous=asynchronous, **options)
    assert [(each["queries"], each["fusion"]) for each in asked] == [(QUERIES, "dbsf")] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_excluded_documents_leave_room_for_others(bert, store, asynchronous):
    pipeline = SearchPipeline(bert, store)
    exclude = [{"cats", "dogs"}, set()]
    first, second = answered(pipeline, QUERIES, asynchronous=asynchronous, top_k=6, exclude=exclude)
    assert len(first) == len(second) == 6
    assert not {"cats", "dogs"} & set(ids(first))


def test_candidates_are_reranked_without_a_search_by_words(bert, store, dense):
    wanted = [["cats", "bread"], ["ferry", "ice"]]
    reranker = ListwiseReranker(bert)
    ours, theirs = (
        SearchPipeline(bert, each, reranker).search_batch(QUERIES, candidates=wanted)
        for each in (store, dense)
    )
    assert all(map(same, ours, theirs))


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_document_without_a_direction_keeps_its_fused_score(
    bert, store, rerank, value, asynchronous
):
    backend = store.client._client.collections["things"]  # no API writes such a vector
    backend.vectors[""][backend.ids[store.layout.point_id("ferry")]] = value
    (found,) = store.search_batch(
        bert.encode_queries([OTHER_QUERY]), top_k=8, queries=[OTHER_QUERY]
    )
    counting = CountingEncoder(bert)
    pipeline = SearchPipeline(counting, store, ListwiseReranker(counting) if rerank else None)
    (hits,) = answered(pipeline, [OTHER_QUERY], asynchronous=asynchronous, top_k=8)
    assert counting.documents == [DOCUMENTS[2].text]
    fused = {hit.document.id: hit.score for hit in found}
    (ferry,) = (hit for hit in hits if hit.document.id == "ferry")
    np.testing.assert_allclose(ferry.embedding, bert.encode_documents([DOCUMENTS[2].text])[0])
    if rerank:
        assert ferry.retrieval_score == fused["ferry"]
    else:
        assert [(hit.document.id, hit.score) for hit in hits] == list(fused.items())


def test_a_query_without_words_is_searched_by_its_vector(bert, store, dense):
    (found, *_) = SearchPipeline(bert, store).search_batch(["of the", QUERY], top_k=3)
    (expected, *_) = SearchPipeline(bert, dense).search_batch(["of the", QUERY], top_k=3)
    assert same(found, expected)


@pytest.mark.parametrize(("value", "top_k"), [(np.nan, 3), (0.0, 8)])
def test_a_query_without_words_is_mended_as_a_search_by_vector_is(bert, store, dense, value, top_k):
    expected = SearchPipeline(bert, dense).search("of the", top_k=top_k)
    backend = store.client._client.collections["things"]
    backend.vectors[""][backend.ids[store.layout.point_id(expected[0].document.id)]] = value
    found, _ = SearchPipeline(bert, store).search_batch(["of the", QUERY], top_k=top_k)
    assert same(found, expected)


def test_hybrid_needs_words(bert, dense):
    pipeline = SearchPipeline(bert, dense)
    with pytest.raises(StoreError, match=r"cannot be searched by words: give bm25="):
        pipeline.search(QUERY, hybrid=True)
    with pytest.raises(ValueError, match=r"hybrid must be True, False, None or one of .*'sum'"):
        pipeline.search(QUERY, hybrid="sum")
    with pytest.raises(StoreError, match=r"cannot be searched by words: give bm25="):
        asyncio.run(pipeline.asearch(QUERY, hybrid="dbsf"))


def test_a_missing_collection_is_named_first(bert):
    empty = QdrantStore.open(":memory:", "none")
    with pytest.raises(CollectionMissing):
        SearchPipeline(bert, empty, stored_vectors="trust").search(QUERY, hybrid=True)
    empty.close()


class Foreign:
    """A store that knows nothing of words."""

    name, fingerprint = "a foreign store", None

    def __init__(self, store):
        self._store, self.dim = store, store.dim

    def search_batch(self, embeddings, *, top_k, filter=None):
        return self._store.search_batch(embeddings, top_k=top_k, filter=filter)


def test_a_store_of_another_kind_is_searched_by_vector(bert, dense):
    pipeline = SearchPipeline(bert, Foreign(dense))
    assert same(pipeline.search(QUERY), SearchPipeline(bert, dense).search(QUERY))
    with pytest.raises(StoreError, match="a foreign store has no hybrid search"):
        pipeline.search(QUERY, hybrid=True)
