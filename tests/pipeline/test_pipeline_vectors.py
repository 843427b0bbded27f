"""A search uses stored vectors only once they are known to be its encoder's."""

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
)
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document, Hit, PairScores
from tests.encoders import CountingEncoder, TableEncoder, another_model
from tests.kit import filled_store, same
from tests.pipeline.conftest import DOCUMENTS, OTHER_QUERY, QUERY, TEXTS


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
    store = filled_store(bert, DOCUMENTS, fingerprint=recorded)
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
    store = filled_store(bert, DOCUMENTS, fingerprint=recorded)
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
