"""Search, rerank and expand over a real store in memory and small encoders."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import (
    ListwiseReranker,
    RocchioReranker,
    score_by_vector,
)
from e2rank_rag.types import Document, Hit
from tests.encoders import CountingEncoder, TableEncoder, another_model
from tests.kit import filled_store, ids, same, scores
from tests.pipeline.conftest import DOCUMENTS, OTHER_QUERY, QUERY, TEXTS

# Search


def test_without_reranker_it_is_the_stores_search(encoder, store):
    hits = SearchPipeline(encoder, store).search(QUERY, top_k=3)
    assert same(hits, store.search(encoder.encode_queries([QUERY])[0], top_k=3))
    assert all(hit.embedding is not None for hit in hits)


def test_with_reranker_the_first_retrieve_k_are_reranked_and_top_k_come_back(encoder, store):
    reranker = ListwiseReranker(encoder)
    found = store.search(encoder.encode_queries([QUERY])[0], top_k=5)
    hits = SearchPipeline(encoder, store, reranker).search(QUERY, top_k=2, retrieve_k=5)
    assert same(hits, reranker.rerank(QUERY, found)[:2])


def test_reranking_a_search_encodes_no_document(encoder, store):
    counting = CountingEncoder(encoder)
    SearchPipeline(counting, store, ListwiseReranker(counting)).search(QUERY)
    assert counting.documents == []
    assert counting.queries == [QUERY]
    assert len(counting.prompts) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("rerank", "options"),
    [
        (False, {}),
        (True, {}),
        (True, {"expand": True}),
        (True, {"candidates": [DOCUMENTS[:4], DOCUMENTS[4:]]}),
    ],
)
def test_excluded_documents_are_left_out_before_reranking(
    encoder, store, rerank, options, asynchronous
):
    if "candidates" in options:
        options = {"candidates": [[Hit(d, 0.0) for d in part] for part in options["candidates"]]}
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder) if rerank else None)
    search = pipeline.asearch_batch if asynchronous else pipeline.search_batch
    exclude = [{"cats", "nowhere"}, ()]
    found = search([QUERY, OTHER_QUERY], top_k=4, retrieve_k=4, exclude=exclude, **options)
    first, second = asyncio.run(found) if asynchronous else found
    assert "cats" not in ids(first)
    if "candidates" in options:
        assert sorted(ids(first)) == ["bridge", "dogs", "ferry"]
    else:
        assert (len(first), len(second)) == (4, 4)
    with pytest.raises(ValueError, match="2 queries came with 1 exclude lists"):
        pipeline.search_batch([QUERY, OTHER_QUERY], exclude=[()])


@pytest.mark.parametrize(("rerank", "expand"), [(False, False), (True, False), (True, True)])
def test_filter_holds_for_every_search(encoder, store, rerank, expand):
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder) if rerank else None)
    hits = pipeline.search(QUERY, filter={"kind": "animal"}, expand=expand)
    assert sorted(ids(hits)) == ["cats", "dogs"]
    assert ids(pipeline.search(QUERY, filter={"year": {"gt": 2001}}, expand=expand)) == ["dogs"]


@pytest.mark.parametrize("expand", [False, True])
def test_a_filter_that_nothing_meets_gives_an_empty_list(encoder, store, expand):
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
    assert pipeline.search(QUERY, filter={"kind": "mineral"}, expand=expand) == []


@pytest.mark.parametrize("expand", [False, True])
def test_a_batch_equals_one_by_one(encoder, store, expand):
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
    batch = pipeline.search_batch([QUERY, OTHER_QUERY], top_k=3, retrieve_k=4, expand=expand)
    for query, hits in zip([QUERY, OTHER_QUERY], batch, strict=True):
        single = pipeline.search(query, top_k=3, retrieve_k=4, expand=expand)
        assert same(hits, single)


def test_no_queries_give_no_rankings(encoder, store):
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
    assert pipeline.search_batch([]) == []
    assert pipeline.search_batch([], expand=True) == []
    assert pipeline.search_batch([], candidates=[]) == []


@pytest.mark.parametrize(
    ("reranker", "options"),
    [
        (None, {}),
        (None, {"candidates": ["ferry", "cats"]}),
        (RocchioReranker, {"expand": True}),
        (ListwiseReranker, {}),
        (ListwiseReranker, {"expand": True}),
        (ListwiseReranker, {"candidates": ["ferry", "cats"]}),
    ],
)
async def test_async_gives_the_same_answer(encoder, store, reranker, options):
    pipeline = SearchPipeline(encoder, store, reranker and reranker(encoder))
    sync = pipeline.search(QUERY, top_k=2, retrieve_k=3, **options)
    assert same(await pipeline.asearch(QUERY, top_k=2, retrieve_k=3, **options), sync)
    many = [QUERY, OTHER_QUERY]
    if "candidates" in options:
        options = {"candidates": [options["candidates"], []]}
    batch = await pipeline.asearch_batch(many, **options)
    for one, other in zip(batch, pipeline.search_batch(many, **options), strict=True):
        assert same(one, other)


async def test_async_does_the_checks_too(encoder, store):
    turned = CountingEncoder(encoder, turn=another_model(encoder.dim))
    with pytest.raises(StoredVectorMismatch):
        await SearchPipeline(turned, store).asearch(QUERY)
    with pytest.raises(ValueError, match="top_k must be > 0"):
        await SearchPipeline(encoder, store).asearch(QUERY, top_k=0)


async def test_the_event_loop_ticks_while_searching(encoder, store):
    slow = CountingEncoder(encoder, pause_s=0.1)
    pipeline = SearchPipeline(slow, store, ListwiseReranker(slow))
    ticks = 0
    task = asyncio.create_task(pipeline.asearch(QUERY, expand=True))
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks >= 10
    assert len(task.result()) == len(DOCUMENTS)


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_must_be_positive(encoder, store, top_k):
    with pytest.raises(ValueError, match=f"top_k must be > 0, got {top_k}"):
        SearchPipeline(encoder, store).search(QUERY, top_k=top_k)


def test_fewer_candidates_than_results_are_refused(encoder, store):
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
    with pytest.raises(ValueError, match=r"retrieve_k must be at least top_k \(10\), got 9"):
        pipeline.search(QUERY, retrieve_k=9)


def test_without_reranker_retrieve_k_means_nothing(encoder, store):
    assert len(SearchPipeline(encoder, store).search(QUERY, top_k=5, retrieve_k=2)) == 5


# Expand


def test_expand_brings_in_what_the_first_search_left_out():
    # The query is nearest to near; its listwise vector lies on far, the last to be retrieved.
    table = TableEncoder(
        {"q": [1, 0], "listwise q": [0, 1], "near": [1, 0.1], "middle": [1, 1], "far": [0, 1]}
    )
    store = filled_store(table, [Document(id, id) for id in ("near", "middle", "far")])
    pipeline = SearchPipeline(table, store, ListwiseReranker(table))
    assert ids(pipeline.search("q", top_k=1, retrieve_k=1)) == ["near"]
    hits = pipeline.search("q", top_k=2, retrieve_k=2, expand=True)
    # First near and middle, then far and middle: their union by the listwise vector.
    assert [(h.document.id, h.score) for h in hits] == [
        ("far", pytest.approx(1.0)),
        ("middle", pytest.approx(np.sqrt(0.5))),
    ]
    store.close()


@pytest.mark.parametrize("kind", [ListwiseReranker, RocchioReranker])
def test_expand_ranks_the_union_by_the_better_vector_each_document_once(encoder, store, kind):
    reranker = kind(encoder)
    plain = encoder.encode_queries([QUERY])[0]
    first = store.search(plain, top_k=3)
    (better,) = reranker.rerank_batch([QUERY], [first]).vectors
    second = store.search(better, top_k=3)
    union = {hit.document.id: hit for hit in [*first, *second]}
    by_hand = score_by_vector(list(union.values()), better)
    hits = SearchPipeline(encoder, store, reranker).search(
        QUERY, top_k=3, retrieve_k=3, expand=True
    )
    assert same(hits, by_hand[:3])


def test_expand_keeps_candidates_that_the_store_does_not_hold(encoder, store):
    outsider = Hit(Document("outsider", QUERY), 9.0)
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
    hits = pipeline.search(QUERY, top_k=20, candidates=[outsider, outsider], expand=True)
    assert sorted(ids(hits)) == sorted(["outsider", *(d.id for d in DOCUMENTS)])
    assert scores(hits) == sorted(scores(hits), reverse=True)


def test_expand_does_not_use_vectors_that_shall_be_ignored(encoder):
    turned = CountingEncoder(encoder, turn=another_model(encoder.dim))
    store = filled_store(turned, DOCUMENTS, fingerprint=False)
    reranker = ListwiseReranker(encoder, stored_vectors="ignore")
    pipeline = SearchPipeline(encoder, store, reranker, stored_vectors="ignore")
    hits = pipeline.search(QUERY, top_k=8, retrieve_k=8, expand=True)
    names = [document.id for document in DOCUMENTS]
    fresh = dict(zip(names, encoder.encode_documents(TEXTS), strict=True))
    for hit in hits:
        np.testing.assert_allclose(hit.embedding, fresh[hit.document.id], atol=1e-5)
    store.close()


class Alphabetical:
    """A reranker without a vector of its own."""

    def rerank_batch(self, queries, candidates):
        return [sorted(hits, key=lambda hit: hit.document.id) for hits in candidates]


@pytest.mark.parametrize(("reranker", "name"), [(None, "NoneType"), (Alphabetical(), "Alphabet")])
def test_expand_needs_a_reranker_with_a_vector(encoder, store, reranker, name):
    with pytest.raises(ValueError, match=f"which {name}.* use ListwiseReranker"):
        SearchPipeline(encoder, store, reranker).search(QUERY, expand=True)


def test_any_reranker_will_do_without_expand(encoder, store):
    hits = SearchPipeline(encoder, store, Alphabetical()).search(QUERY, top_k=3)
    assert ids(hits) == ["bread", "bridge", "cats"]


# Candidates from elsewhere


@pytest.mark.parametrize("kind", [None, ListwiseReranker, RocchioReranker])
def test_ids_and_hits_of_any_kind_give_the_same_ranking(encoder, store, kind):
    names = ["ferry", "cats", "bread"]
    by_id = {document.id: document for document in DOCUMENTS}
    vectors = {hit.document.id: hit.embedding for hit in store.search(np.ones(32), top_k=8)}
    bare = [Hit(by_id[name], -i) for i, name in enumerate(names)]
    whole = [Hit(by_id[name], -i, vectors[name]) for i, name in enumerate(names)]
    pipeline = SearchPipeline(encoder, store, kind and kind(encoder))
    rankings = pipeline.search_batch([QUERY] * 3, candidates=[names, bare, whole])
    assert ids(rankings[0]) == ids(rankings[1]) == ids(rankings[2])
    assert sorted(ids(rankings[0])) == sorted(names)
    for hits in rankings[1:]:
        assert scores(hits) == pytest.approx(scores(rankings[0]), abs=1e-5)


def test_without_reranker_candidates_are_ranked_by_the_querys_cosine(encoder, store):
    hits = SearchPipeline(encoder, store).search(QUERY, candidates=["ferry", "cats", "bread"])
    query = encoder.encode_queries([QUERY])[0]
    for hit in hits:
        assert hit.score == pytest.approx(float(query @ hit.embedding), abs=1e-5)
    assert scores(hits) == sorted(scores(hits), reverse=True)


def test_vectors_of_candidates_come_from_the_store(encoder, store):
    counting = CountingEncoder(encoder)
    pipeline = SearchPipeline(counting, store, ListwiseReranker(counting))
    bare = [Hit(document, 0.0) for document in DOCUMENTS[:3]]
    pipeline.search_batch([QUERY, QUERY], candidates=[["cats", "dogs"], bare], top_k=2)
    assert counting.documents == []


def test_a_candidate_that_the_store_lacks_or_holds_otherwise_is_encoded(encoder, store):
    counting = CountingEncoder(encoder)
    pipeline = SearchPipeline(counting, store, ListwiseReranker(counting))
    new = Hit(Document("new", "a text that is not stored"), 0.0)
    changed = Hit(Document("cats", "another text about cats"), 0.0)
    hits = pipeline.search(QUERY, candidates=[new, changed, Hit(DOCUMENTS[1], 0.0)])
    assert sorted(ids(hits)) == ["cats", "dogs", "new"]
    assert counting.documents == ["a text that is not stored", "another text about cats"]


def test_ids_that_the_store_lacks_are_an_error(encoder, store):
    with pytest.raises(ValueError, match=r"2 candidates are not in the store.*\['x', 'y'\]"):
        SearchPipeline(encoder, store).search(QUERY, candidates=["cats", "x", "y"])


def test_an_empty_candidate_list_gives_an_empty_ranking(encoder, store):
    for reranker in (None, ListwiseReranker(encoder)):
        pipeline = SearchPipeline(encoder, store, reranker)
        assert pipeline.search(QUERY, candidates=[]) == []
        empty, full = pipeline.search_batch([QUERY] * 2, candidates=[[], ["cats"]])
        assert (ids(empty), ids(full)) == ([], ["cats"])


def test_one_candidate_list_per_query_is_needed(encoder, store):
    with pytest.raises(ValueError, match="2 queries came with 1 candidate lists"):
        SearchPipeline(encoder, store).search_batch([QUERY] * 2, candidates=[["cats"]])
