"""Search, rerank and expand over a real store in memory and small encoders."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from qdrant_client import models

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.indexing import index_documents
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import (
    CrossEncoderReranker,
    ListwiseReranker,
    RocchioReranker,
    score_by_vector,
)
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document, Hit, PairScores
from tests.encoders import CountingEncoder, TableEncoder, another_model

DOCUMENTS = [
    Document("cats", "cats purr, cats sleep, cats purr again", {"kind": "animal", "year": 2001}),
    Document("dogs", "dogs bark, dogs dig, dogs bark again", {"kind": "animal", "year": 2002}),
    Document("ferry", "A ferry crosses the strait four times a day.", {"kind": "traffic"}),
    Document("bridge", "The oldest bridge carries trams and bicycles.", {"kind": "traffic"}),
    Document("bread", "Bread rises because yeast turns sugar into carbon dioxide.", {}),
    Document("prime", "A prime number has no divisors but one and itself.", {}),
    Document("ice", "Glaciers move downhill under their own weight.", {}),
    Document("router", "To reset the router, hold the button for ten seconds.", {}),
]
TEXTS = [document.text for document in DOCUMENTS]
QUERY, OTHER_QUERY = "Which animals purr?", "When does the ferry cross?"


def ids(hits):
    return [hit.document.id for hit in hits]


def scores(hits):
    return [hit.score for hit in hits]


def same(ranking, other):
    """The same documents in the same order, scores as near as two computations come."""
    return ids(ranking) == ids(other) and scores(ranking) == pytest.approx(scores(other), abs=1e-5)


def filled_store(encoder, documents=DOCUMENTS, *, fingerprint=True):
    store = QdrantStore.open(":memory:", "things")
    store.prepare(encoder.dim, fingerprint=encoder.fingerprint if fingerprint else None)
    store.upsert(documents, encoder.encode_documents([d.text for d in documents]))
    return store


@pytest.fixture(params=["bert", "qwen3"])
def encoder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(encoder):
    store = filled_store(encoder)
    yield store
    store.close()


@pytest.fixture
def foreign(encoder):
    """A collection that says nothing about who wrote its vectors."""
    store = filled_store(encoder, fingerprint=False)
    yield store
    store.close()


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
    store = filled_store(turned, fingerprint=False)
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


# Whose vectors


@pytest.mark.parametrize("rerank", [False, True])
def test_a_store_of_another_fingerprint_is_refused_at_the_first_search(encoder, store, rerank):
    turned = CountingEncoder(encoder, turn=another_model(encoder.dim))
    pipeline = SearchPipeline(turned, store, ListwiseReranker(turned) if rerank else None)
    for _ in range(2):
        with pytest.raises(StoredVectorMismatch, match="was written by another model") as caught:
            pipeline.search(QUERY)
        assert store.name in str(caught.value)
        assert turned.name in str(caught.value)
    assert turned.queries == []


def test_a_store_of_another_dimension_is_refused(encoder):
    table = TableEncoder({"a": [1, 0], "b": [0, 1]})
    store = filled_store(table, [Document("a", "a")])
    with pytest.raises(StoredVectorMismatch, match=r"holds vectors of 2 dimensions.* makes 32"):
        SearchPipeline(encoder, store).search(QUERY)
    store.close()


@pytest.mark.parametrize("rerank", [False, True])
def test_a_collection_without_fingerprint_is_probed(encoder, foreign, rerank):
    counting = CountingEncoder(encoder)
    pipeline = SearchPipeline(counting, foreign, ListwiseReranker(counting) if rerank else None)
    hits = pipeline.search(QUERY, top_k=4, retrieve_k=4)
    assert len(hits) == len(counting.documents) + 2 == 4
    pipeline.search(OTHER_QUERY)  # of all 8, the two that were compared are among them
    assert len(counting.documents) == 2


def rewritten_with_a_record(store, turned):
    store.client.delete_collection("things")
    index_documents(DOCUMENTS, turned, QdrantStore(store.client, "things"))


def rewritten_without_a_record(store, turned):
    store.client.delete_collection("things")
    fresh = QdrantStore(store.client, "things")
    fresh.prepare(turned.dim)
    fresh.upsert(DOCUMENTS, turned.encode_documents(TEXTS))


def rewritten_in_its_place(store, turned):
    store.upsert(DOCUMENTS, turned.encode_documents(TEXTS))


def alias_switched(store, turned):
    other = QdrantStore(store.client, "turned")
    other.prepare(turned.dim)
    other.upsert(DOCUMENTS, turned.encode_documents(TEXTS))
    store.client.delete_collection("things")
    alias = models.CreateAlias(collection_name="turned", alias_name="things")
    operation = models.CreateAliasOperation(create_alias=alias)
    store.client.update_collection_aliases([operation])


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", ["none", "listwise", "pairs", "expand"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        rewritten_with_a_record,
        rewritten_without_a_record,
        rewritten_in_its_place,
        alias_switched,
    ],
)
async def test_what_was_checked_once_is_checked_again_when_it_may_have_changed(
    bert, change, recorded, kind, asynchronous
):
    if recorded and change is rewritten_in_its_place:
        pytest.skip("vectors that belie the record are what the record is trusted for")
    store = filled_store(bert, fingerprint=recorded)
    turned = CountingEncoder(bert, turn=another_model(bert.dim))
    reranker = {
        "none": None,
        "pairs": CrossEncoderReranker(ByLength()),
        "listwise": ListwiseReranker(bert),
        "expand": ListwiseReranker(bert),
    }[kind]
    pipeline = SearchPipeline(bert, store, reranker)
    options = {"top_k": 4, "retrieve_k": 8, "expand": kind == "expand"}
    for query in (QUERY, OTHER_QUERY, QUERY):
        pipeline.search(query, **options)
    change(store, turned)
    for _ in range(2):
        with pytest.raises(StoredVectorMismatch):
            _ = (
                await pipeline.asearch(QUERY, **options)
                if asynchronous
                else pipeline.search(QUERY, **options)
            )
    store.close()


def test_a_collection_that_was_mended_is_searched_again(encoder, store):
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
    expected = pipeline.search(QUERY)
    turned = CountingEncoder(encoder, turn=another_model(encoder.dim))
    rewritten_with_a_record(store, turned)
    with pytest.raises(StoredVectorMismatch):
        pipeline.search(QUERY)
    rewritten_with_a_record(store, encoder)
    assert same(pipeline.search(QUERY), expected)


@pytest.mark.parametrize("kind", ["none", "listwise", "pairs"])
@pytest.mark.parametrize("value", [np.nan, 0.0])
@pytest.mark.parametrize("recorded", [False, True])
def test_one_vector_without_a_direction_fails_no_query_and_changes_no_ranking(
    bert, kind, value, recorded, caplog
):
    reranker = {
        "none": None,
        "pairs": CrossEncoderReranker(ByLength()),
        "listwise": ListwiseReranker(bert),
    }[kind]
    store = filled_store(bert, fingerprint=recorded)
    pipeline = SearchPipeline(bert, store, reranker)
    expected = pipeline.search(QUERY)
    alone = pipeline.search(QUERY, filter={"year": 2001})
    backend = store.client._client.collections["things"]  # no API writes such a vector
    place = backend.ids[store.layout.point_id("cats")]
    backend.vectors[""][place] = value
    assert same(pipeline.search(QUERY), expected)
    assert same(pipeline.search(QUERY, filter={"year": 2001}), alone)
    if kind == "none" and value != 0.0:  # Qdrant ranks NaN before all others
        for top_k in range(1, 5):
            assert same(pipeline.search(QUERY, top_k=top_k), expected[:top_k])
            hits = asyncio.run(pipeline.asearch(QUERY, top_k=top_k))
            assert same(hits, expected[:top_k])
    assert "'cats'" in caplog.text
    assert [hit.score for hit in store.search(bert.encode_queries([QUERY])[0], top_k=8)][-1] == 0.0
    store.close()


@pytest.mark.parametrize("rerank", [False, True])
def test_foreign_vectors_of_another_model_are_refused(encoder, foreign, rerank):
    turned = CountingEncoder(encoder, turn=another_model(encoder.dim))
    pipeline = SearchPipeline(turned, foreign, ListwiseReranker(turned) if rerank else None)
    with pytest.raises(StoredVectorMismatch, match="another model wrote it") as caught:
        pipeline.search(QUERY)
    assert turned.name in str(caught.value)
    assert foreign.name in str(caught.value)


class ByLength:
    """Scores a pair by the length of its document; reads no vectors."""

    def score(self, queries, documents):
        return PairScores([np.array([len(text) for text in texts]) for texts in documents], ())


def test_under_a_reranker_that_reads_no_vectors_the_pipeline_probes(encoder, foreign):
    counting = CountingEncoder(encoder)
    pipeline = SearchPipeline(counting, foreign, CrossEncoderReranker(ByLength()))
    hits = pipeline.search(QUERY, top_k=len(TEXTS))
    assert [hit.document.text for hit in hits] == sorted(TEXTS, key=len, reverse=True)
    pipeline.search(OTHER_QUERY)
    assert len(counting.documents) == 2
    turned = CountingEncoder(encoder, turn=another_model(encoder.dim))
    with pytest.raises(StoredVectorMismatch, match="another model wrote it"):
        SearchPipeline(turned, foreign, CrossEncoderReranker(ByLength())).search(QUERY)


@pytest.mark.parametrize("rerank", [False, True])
def test_trust_leaves_every_check_out(encoder, foreign, store, rerank):
    counting = CountingEncoder(encoder, turn=another_model(encoder.dim))
    reranker = ListwiseReranker(counting, stored_vectors="trust") if rerank else None
    for one in (foreign, store):
        pipeline = SearchPipeline(counting, one, reranker, stored_vectors="trust")
        assert len(pipeline.search(QUERY, top_k=3)) == 3
    assert counting.documents == []


def test_a_reranker_with_a_model_of_its_own_makes_its_own_probe(encoder, store):
    turned = CountingEncoder(encoder, turn=another_model(encoder.dim))
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(turned))
    with pytest.raises(StoredVectorMismatch, match="turned"):
        pipeline.search(QUERY)


def test_vectors_that_candidates_bring_along_are_not_used(minilm):
    texts = {"a": "cats purr", "b": "trains run on rails"}
    documents = [Document(id, text) for id, text in texts.items()]
    store = QdrantStore.open(":memory:", "own")
    index_documents(documents, minilm, store)
    vectors = minilm.encode_documents(list(texts.values()))
    swapped = [Hit(documents[0], 0.0, vectors[1]), Hit(documents[1], 0.0, vectors[0])]
    hits = SearchPipeline(minilm, store).search("cats", candidates=swapped)
    assert [hit.document.id for hit in hits] == ["a", "b"]
    expected = minilm.encode_queries(["cats"])[0] @ vectors[0]
    assert hits[0].score == pytest.approx(float(expected), abs=1e-6)


def test_the_encoder_that_checks_the_vectors_cannot_be_exchanged_by_halves(bert, qwen3):
    store = QdrantStore.open(":memory:", "docs")
    for part in (SearchPipeline(bert, store), ListwiseReranker(bert)):
        with pytest.raises(AttributeError, match="encoder"):
            part.encoder = qwen3
        assert part.encoder is bert
    store.close()
