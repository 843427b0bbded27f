"""E2RankRetriever, test by test as Haystack's Qdrant retriever, and against the stock chain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.document_stores.types import FilterPolicy
from haystack.utils import ComponentDevice
from haystack.utils.filters import FilterError
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from qdrant_client import QdrantClient, models

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from e2rank_rag.types import Document as CoreDocument
from tests.encoders import another_model
from tests.integrations.haystack_kit import (
    QUERY,
    Encoded,
    alike,
    documents,
    folder_store,
    ids,
    memory_store,
    scores,
)

TYPE = "haystack_integrations.components.retrievers.e2rank.retriever.E2RankRetriever"
STORE_TYPE = "haystack_integrations.document_stores.qdrant.document_store.QdrantDocumentStore"
DEFAULTS = {
    "model": "e2rank-minilm",
    "reranker": None,
    "system": None,
    "hybrid": None,
    "bm25": None,
    "top_k": 10,
    "retrieve_k": 100,
    "filters": None,
    "filter_policy": "replace",
    "score_threshold": None,
    "expand": False,
    "return_embedding": False,
    "group_by": None,
    "group_size": 1,
    "prompt_depth": None,
    "query_weight": None,
    "evidence": None,
    "explain": False,
    "stored_vectors": "check",
    "meta_fields_to_embed": [],
    "embedding_separator": "\n",
    "query_prefix": "",
    "query_suffix": "",
    "document_prefix": "",
    "document_suffix": "",
    "device": None,
    "dtype": None,
    "encoder_kwargs": None,
}
EARLY = {"field": "meta.number", "operator": "<", "value": 6}
EVEN = {"field": "meta.number", "operator": "in", "value": [0, 2, 4, 6, 8, 10]}


@pytest.fixture
def encoded(monkeypatch):
    return Encoded(monkeypatch)


@pytest.fixture(scope="module")
def store(embedded):
    store = memory_store(32, embedded)
    yield store
    store.close()


@pytest.fixture
def retriever(store, tiny_bert):
    retriever = E2RankRetriever(document_store=store, model=tiny_bert)
    yield retriever
    retriever.close()


@pytest.fixture(scope="module")
def core(store, tiny_bert):
    """The same search without Haystack."""
    with Encoder.from_pretrained(tiny_bert) as encoder:
        ours = QdrantStore(store._client, "docs")
        yield SearchPipeline(encoder, ours, ListwiseReranker(encoder))


# Construction and YAML


@pytest.mark.parametrize("wrong", ["not a store", None, 3])
def test_init_raises_when_document_store_is_none(wrong):
    with pytest.raises(ValueError, match="must be a QdrantDocumentStore"):
        E2RankRetriever(document_store=wrong)


def test_init_default(store):
    retriever = E2RankRetriever(store)
    assert retriever.document_store is store
    assert retriever.filter_policy is FilterPolicy.REPLACE
    assert E2RankRetriever(store, filter_policy="merge").filter_policy is FilterPolicy.MERGE
    with pytest.raises(ValueError, match="invalid"):
        E2RankRetriever(store, filter_policy="invalid")


def test_init_invalid_numbers(store):
    for options in (
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 20, "retrieve_k": 10},
        {"group_size": 0},
        {"prompt_depth": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(options)) + " must|retrieve_k must"):
            E2RankRetriever(store, **options)


def test_to_dict(store):
    data = E2RankRetriever(store).to_dict()
    written = data["init_parameters"].pop("document_store")
    assert data == {"type": TYPE, "init_parameters": DEFAULTS}
    assert written == store.to_dict()


def test_from_dict():
    parameters = {
        **DEFAULTS,
        "document_store": {
            "type": STORE_TYPE,
            "init_parameters": {"location": ":memory:", "index": "test"},
        },
        "filters": EARLY,
        "filter_policy": "merge",
        "top_k": 5,
        "return_embedding": True,
        "device": {"type": "single", "device": "cpu"},
    }
    retriever = E2RankRetriever.from_dict({"type": TYPE, "init_parameters": parameters})
    assert isinstance(retriever.document_store, QdrantDocumentStore)
    assert retriever.document_store.index == "test"
    assert retriever.filters == EARLY
    assert retriever.filter_policy is FilterPolicy.MERGE
    assert retriever.top_k == 5
    assert retriever.return_embedding is True
    assert retriever.device == ComponentDevice.from_str("cpu")


def test_from_dict_no_filter_policy():
    store = {"type": STORE_TYPE, "init_parameters": {"location": ":memory:"}}
    data = {"type": TYPE, "init_parameters": {"document_store": store}}
    assert E2RankRetriever.from_dict(data).filter_policy is FilterPolicy.REPLACE


def test_yaml_of_a_reader_never_drops_the_collection(store):
    recreated = QdrantDocumentStore(":memory:", index="docs", recreate_index=True)
    for reader in (E2RankRetriever(recreated), E2RankRanker(document_store=recreated)):
        data = reader.to_dict()["init_parameters"]["document_store"]
        assert data["init_parameters"]["recreate_index"] is False
    assert recreated.recreate_index is True


def test_a_store_of_ours_survives_yaml(tiny_bert, embedded, tmp_path):
    store = QdrantStore.open(tmp_path, "docs", layout=LANGCHAIN_LAYOUT)
    store.prepare(32)
    numbers = [CoreDocument(str(n), d.content, d.meta) for n, d in enumerate(embedded)]
    store.upsert(numbers, np.array([d.embedding for d in embedded], dtype=np.float32))
    pipeline = Pipeline()
    pipeline.add_component("retriever", E2RankRetriever(store, model=tiny_bert, top_k=4))
    expected = pipeline.run({"retriever": {"query": QUERY, "filters": EARLY}})["retriever"]
    text = pipeline.dumps()
    pipeline.get_component("retriever").close()
    store.close()
    loaded = Pipeline.loads(text)
    again = loaded.run({"retriever": {"query": QUERY, "filters": EARLY}})["retriever"]
    assert ids(again) == ids(expected)
    assert set(ids(expected)) <= {str(n) for n in range(6)}
    loaded.get_component("retriever").close()


def test_keys_stay_out_of_yaml(recwarn):
    client = QdrantClient(url="http://localhost:1", api_key="hidden", check_compatibility=False)
    with pytest.raises(ValueError, match="has 'api_key'"):
        E2RankRetriever(QdrantStore(client, "docs")).to_dict()
    recwarn.clear()  # qdrant-client's, of a key over http
    with pytest.raises(ValueError, match="api_key is a Secret"):
        E2RankRetriever({"location": "http://x", "collection": "docs", "api_key": "hidden"})
    with pytest.raises(ValueError, match="lacks \\['collection'\\]"):
        E2RankRetriever({"location": "http://x"})


# Running


def test_run(retriever, core):
    answer = retriever.run(query=QUERY)
    hits = core.search(QUERY)
    assert ids(answer) == [hit.document.id for hit in hits]
    assert scores(answer) == pytest.approx([hit.score for hit in hits], abs=1e-5)
    plain = dict(zip(*_retrieved(core), strict=True))
    for document, hit in zip(answer["documents"], hits, strict=True):
        assert document.content == hit.document.text
        assert document.meta == {
            **hit.document.meta,
            "retrieval_score": pytest.approx(plain[document.id], abs=1e-6),
        }
        assert type(document.score) is type(document.meta["retrieval_score"]) is float
        assert document.embedding is None


def _retrieved(core):
    found = core.store.search(core.encoder.encode_queries([QUERY])[0], top_k=12)
    return [hit.document.id for hit in found], [hit.score for hit in found]


def test_run_top_k_and_retrieve_k(retriever):
    everything = ids(retriever.run(query=QUERY, top_k=12))
    assert len(everything) == 12
    assert ids(retriever.run(query=QUERY, top_k=3)) == everything[:3]
    few = retriever.run(query=QUERY, top_k=3, retrieve_k=3)
    assert len(few["documents"]) == 3
    with pytest.raises(ValueError, match="retrieve_k must be at least top_k"):
        retriever.run(query=QUERY, top_k=3, retrieve_k=2)


@pytest.mark.parametrize("top_k", [0, -1])
async def test_run_invalid_top_k(retriever, top_k):
    with pytest.raises(ValueError, match="top_k must be > 0"):
        retriever.run(query=QUERY, top_k=top_k)
    with pytest.raises(ValueError, match="top_k must be > 0"):
        await retriever.run_async(query=QUERY, top_k=top_k)


def test_a_larger_top_k_than_retrieve_k_at_run_time_retrieves_as_many(store, tiny_bert):
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=2, retrieve_k=4)
    assert len(retriever.run(query=QUERY, top_k=9)["documents"]) == 9
    retriever.close()


async def test_run_async(retriever):
    for options in ({}, {"top_k": 3, "filters": EARLY, "return_embedding": True}):
        expected = retriever.run(query=QUERY, **options)
        assert alike(await retriever.run_async(query=QUERY, **options), expected)


async def test_run_falsy_runtime_values_override_init(store, tiny_bert):
    retriever = E2RankRetriever(
        store, model=tiny_bert, top_k=12, score_threshold=1.1, return_embedding=True
    )
    assert retriever.run(query=QUERY)["documents"] == []
    options = {"score_threshold": 0.0, "return_embedding": False}
    for answer in (
        retriever.run(query=QUERY, **options),
        await retriever.run_async(query=QUERY, **options),
    ):
        assert answer["documents"]
        assert all(d.score >= 0.0 and d.embedding is None for d in answer["documents"])
    everything = retriever.run(query=QUERY, score_threshold=-1.0)
    assert all(len(d.embedding) == 32 for d in everything["documents"])
    retriever.close()


def test_run_with_score_threshold(retriever):
    everything = retriever.run(query=QUERY)
    limit = sum(scores(everything)[3:5]) / 2
    found = retriever.run(query=QUERY, score_threshold=limit)
    assert alike(found["documents"], everything["documents"][:4])


def test_run_return_embedding(retriever, embedded):
    found = retriever.run(query=QUERY, return_embedding=True)["documents"]
    written = {d.id: d.embedding for d in embedded}
    for document in found:
        assert {type(number) for number in document.embedding} == {float}
        np.testing.assert_allclose(document.embedding, written[document.id], atol=1e-6)


def test_run_with_sparse_activated(embedded, retriever, tiny_bert):
    named = memory_store(32, embedded, use_sparse_embeddings=True)
    other = E2RankRetriever(named, model=tiny_bert)
    assert ids(other.run(query=QUERY)) == ids(retriever.run(query=QUERY))
    other.close()


def test_run_with_group_by(tiny_bert, embedded):
    chunks = [replace(d, meta={"parent": {"id": n // 3}}) for n, d in enumerate(embedded)]
    chunks[5] = replace(chunks[5], meta={})
    store = memory_store(32, chunks)
    whole = E2RankRetriever(store, model=tiny_bert, top_k=12).run(query=QUERY)["documents"]
    for size in (1, 2):
        kept, seen = [], []
        for document in whole:
            parent = document.meta.get("parent", {}).get("id")
            if parent is None or seen.count(parent) < size:
                kept.append(document.id)
            seen.append(parent)
        for field in ("parent.id", "meta.parent.id"):
            retriever = E2RankRetriever(
                store, model=tiny_bert, top_k=4, group_by=field, group_size=size
            )
            assert ids(retriever.run(query=QUERY)) == kept[:4]
            retriever.close()


def test_equal_numbers_are_one_group(tiny_bert, embedded):
    chunks = [
        replace(document, meta={"parent": parent})
        for document, parent in zip(embedded, [3, 3.0, True, 1, "3"], strict=False)
    ]
    store = memory_store(32, chunks)
    retriever = E2RankRetriever(store, model=tiny_bert, group_by="parent")
    parents = [document.meta["parent"] for document in retriever.run(query=QUERY)["documents"]]
    assert sorted(map(repr, parents)) in (["'3'", "1", "3", "True"], ["'3'", "1", "3.0", "True"])
    retriever.close()


def test_run_with_embedded_meta(tiny_bert, encoded):
    embedder = E2RankDocumentEmbedder(model=tiny_bert, meta_fields_to_embed=["number"])
    store = memory_store(32, embedder.run(documents())["documents"])
    encoded.documents.clear()
    retriever = E2RankRetriever(store, model=tiny_bert, meta_fields_to_embed=["number"])
    found = retriever.run(query=QUERY)["documents"]
    assert len(encoded.documents) == 2
    assert all("\n" in text for text in [*encoded.documents, *encoded.prompts[0][1]])
    assert not any("\n" in document.content for document in found)
    embedder.close()
    retriever.close()


def test_run_with_expand(store, core, tiny_bert):
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=5, retrieve_k=5, expand=True)
    hits = core.search(QUERY, top_k=5, retrieve_k=5, expand=True)
    answer = retriever.run(query=QUERY)
    assert ids(answer) == [hit.document.id for hit in hits]
    assert all("retrieval_score" in d.meta for d in answer["documents"])
    retriever.close()


@pytest.mark.parametrize("expand", [False, True])
async def test_words_add_to_the_scores_where_the_recipe_says_so(store, worded_bert, expand):
    query = "cats, dogs, ferry, bridge, yeast"  # any five documents hold some of these
    options = {"top_k": 5, "retrieve_k": 5, "expand": expand}
    retriever = E2RankRetriever(store, model=worded_bert, **options)
    with Encoder.from_pretrained(worded_bert) as encoder:
        pipeline = SearchPipeline(
            encoder, QdrantStore(store._client, "docs"), ListwiseReranker(encoder)
        )
        hits = pipeline.search(query, **options)
        plain = ListwiseReranker(encoder, evidence=False)
        cosines = SearchPipeline(encoder, pipeline.store, plain).search(query, **options)
    for answer in (retriever.run(query=query), await retriever.run_async(query=query)):
        assert ids(answer) == [hit.document.id for hit in hits]
        assert scores(answer) == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert [hit.score for hit in hits] != pytest.approx([hit.score for hit in cosines], abs=1e-3)
    best = scores(answer)[0]
    assert len(retriever.run(query=query, score_threshold=best - 1e-4)["documents"]) == 1
    retriever.close()


def test_an_empty_collection_gives_nothing(tiny_bert):
    retriever = E2RankRetriever(memory_store(32), model=tiny_bert)
    assert retriever.run(query=QUERY) == {"documents": []}
    retriever.close()


# Filters


def test_run_filters(retriever):
    answer = retriever.run(query=QUERY, filters=EARLY)
    assert sorted(ids(answer)) == [f"d{n}" for n in range(6)]
    both = {"operator": "AND", "conditions": [EARLY, EVEN]}
    assert sorted(ids(retriever.run(query=QUERY, filters=both))) == ["d0", "d2", "d4"]


async def test_filters_are_replaced_or_merged(store, tiny_bert):
    replaced = E2RankRetriever(store, model=tiny_bert, filters=EARLY)
    assert sorted(ids(replaced.run(query=QUERY))) == [f"d{n}" for n in range(6)]
    found = replaced.run(query=QUERY, filters=EVEN)
    assert sorted(ids(found)) == sorted(f"d{n}" for n in range(0, 12, 2))
    merged = E2RankRetriever(store, model=tiny_bert, filters=EARLY, filter_policy="merge")
    both = {"operator": "OR", "conditions": [EVEN]}
    name = {"field": "id", "operator": "!=", "value": "d2"}
    assert sorted(ids(await merged.run_async(query=QUERY, filters=name))) == [
        "d0",
        "d1",
        "d3",
        "d4",
        "d5",
    ]
    assert ids(replaced.run(query=QUERY, filters=both)) == ids(found)
    replaced.close()
    merged.close()


def test_native_filters_pass_through(retriever):
    native = models.Filter(
        must=[models.FieldCondition(key="meta.number", range=models.Range(lt=6))]
    )
    answer = retriever.run(query=QUERY, filters=native)
    assert ids(answer) == ids(retriever.run(query=QUERY, filters=EARLY))


async def test_run_raises_when_merge_with_native_filter(store, tiny_bert):
    native = models.Filter(must=[])
    at_init = E2RankRetriever(store, model=tiny_bert, filters=native, filter_policy="merge")
    at_run = E2RankRetriever(store, model=tiny_bert, filter_policy=FilterPolicy.MERGE)
    with pytest.raises(ValueError, match="Native Qdrant filters"):
        at_init.run(query=QUERY)
    with pytest.raises(ValueError, match="Native Qdrant filters"):
        at_run.run(query=QUERY, filters=native)
    with pytest.raises(ValueError, match="Native Qdrant filters"):
        await at_run.run_async(query=QUERY, filters=native)
    at_init.close()
    at_run.close()


def test_a_filter_without_operator_is_refused(retriever):
    with pytest.raises(FilterError, match="no Haystack filter"):
        retriever.run(query=QUERY, filters={"number": 3})


async def test_an_empty_list_of_groups_finds_nothing(retriever):
    filters = {"field": "meta.number", "operator": "in", "value": []}
    assert retriever.run(query=QUERY, filters=filters) == {"documents": []}
    assert await retriever.run_async(query=QUERY, filters=filters) == {"documents": []}


# Closing


def test_close_releases_the_store_which_opens_again(tiny_bert, embedded, tmp_path):
    store = folder_store(tmp_path)
    store.write_documents(embedded)
    for component, run in (
        (E2RankRetriever(store, model=tiny_bert), {"query": QUERY}),
        (
            E2RankRanker(model=tiny_bert, document_store=store),
            {"query": QUERY, "documents": documents()},
        ),
    ):
        expected = component.run(**run)
        component.close()
        assert store._client is None
        assert alike(component.run(**run), expected)
        component.close()


async def test_close_async(tiny_bert, embedded, tmp_path):
    store = folder_store(tmp_path)
    store.write_documents(embedded)
    retriever = E2RankRetriever(store, model=tiny_bert)
    expected = await retriever.run_async(query=QUERY)
    await retriever.close_async()
    assert store._client is None
    assert alike(await retriever.run_async(query=QUERY), expected)
    await retriever.close_async()


def test_close_keeps_documents_in_memory_and_stores_of_ours(tiny_bert, embedded, store):
    ours = QdrantStore.open(":memory:", "docs")
    ours.prepare(32)
    ours.upsert(
        [CoreDocument(d.id, d.content, d.meta) for d in embedded],
        np.array([d.embedding for d in embedded], dtype=np.float32),
    )
    answers = []
    for given in (store, ours):
        retriever = E2RankRetriever(given, model=tiny_bert)
        answers.append(ids(retriever.run(query=QUERY)))
        retriever.close()
        answers.append(ids(retriever.run(query=QUERY)))
        retriever.close()
    assert len(set(map(tuple, answers))) == 1


# Whose vectors they are


def test_a_missing_collection_of_ours_is_named(tiny_bert):
    retriever = E2RankRetriever(QdrantStore.open(":memory:", "other"), model=tiny_bert)
    with pytest.raises(StoreError, match="'other' is not there"):
        retriever.run(query=QUERY)
    retriever.close()


def test_another_models_collection_is_refused(tiny_bert, embedded):
    turned = np.array([d.embedding for d in embedded]) @ another_model(32)
    store = memory_store(
        32, [replace(d, embedding=v.tolist()) for d, v in zip(embedded, turned, strict=True)]
    )
    retriever = E2RankRetriever(store, model=tiny_bert)
    with pytest.raises(StoredVectorMismatch, match="another model wrote it"):
        retriever.run(query=QUERY)
    wider = memory_store(3, [Document(id="a", content="cats", embedding=[1.0, 0.0, 0.0])])
    with pytest.raises(StoredVectorMismatch, match="3 dimensions"):
        E2RankRetriever(wider, model=tiny_bert).run(query=QUERY)
    retriever.close()
