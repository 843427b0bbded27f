"""E2RankRanker, with one test for each of the suites of Haystack's own rankers."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.e2rank import E2RankDocumentEmbedder
from haystack_integrations.components.rankers.e2rank import E2RankRanker

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.evidence import Evidence
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document as CoreDocument
from e2rank_rag.types import Hit
from e2rank_rag.vectors import PROBED_OF_MIXED
from tests.encoders import another_model
from tests.integrations.haystack_kit import (
    QUERY,
    Encoded,
    alike,
    documents,
    encoder_of,
    ids,
    memory_store,
    scores,
)

TYPE = "haystack_integrations.components.rankers.e2rank.ranker.E2RankRanker"
DEFAULTS = {
    "model": "e2rank-minilm",
    "system": None,
    "top_k": 10,
    "score_threshold": None,
    "prompt_depth": None,
    "query_weight": None,
    "evidence": None,
    "explain": False,
    "stored_vectors": "check",
    "document_store": None,
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


@pytest.fixture
def encoded(monkeypatch):
    return Encoded(monkeypatch)


@pytest.fixture
def ranker(tiny_bert):
    ranker = E2RankRanker(model=tiny_bert)
    yield ranker
    ranker.close()


# Construction and YAML


@pytest.mark.parametrize("top_k", [0, -1])
def test_init_invalid_top_k(top_k):
    with pytest.raises(ValueError, match=f"top_k must be > 0, but got {top_k}"):
        E2RankRanker(top_k=top_k)


def test_init_refuses_what_the_reranker_would():
    with pytest.raises(ValueError, match="stored_vectors"):
        E2RankRanker(stored_vectors="maybe")
    with pytest.raises(ValueError, match="prompt_depth"):
        E2RankRanker(prompt_depth=-1)
    with pytest.raises(ValueError, match="query_weight"):
        E2RankRanker(query_weight=1.5)
    with pytest.raises(ValueError, match="got list"):
        E2RankRanker(document_store=[])


def test_to_dict():
    assert E2RankRanker().to_dict() == {"type": TYPE, "init_parameters": DEFAULTS}


def test_to_dict_with_custom_init_parameters():
    custom = {
        "model": "my-model",
        "system": "e2rank",
        "top_k": 5,
        "score_threshold": 0.01,
        "prompt_depth": 7,
        "query_weight": 0.25,
        "evidence": Evidence(words=0.1).model_dump(),
        "explain": True,
        "stored_vectors": "trust",
        "document_store": None,
        "meta_fields_to_embed": ["title"],
        "embedding_separator": " - ",
        "query_prefix": "q: ",
        "query_suffix": "?",
        "document_prefix": "d: ",
        "document_suffix": ".",
        "dtype": "bfloat16",
        "encoder_kwargs": {"max_length": 64},
    }
    data = E2RankRanker(**custom, device=ComponentDevice.from_str("cuda:0")).to_dict()
    assert data == {
        "type": TYPE,
        "init_parameters": {**custom, "device": {"type": "single", "device": "cuda:0"}},
    }


def test_from_dict():
    parameters = {
        **DEFAULTS,
        "top_k": 5,
        "score_threshold": 0.0,
        "device": {"type": "single", "device": "cpu"},
    }
    ranker = E2RankRanker.from_dict({"type": TYPE, "init_parameters": parameters})
    assert ranker.top_k == 5
    assert ranker.score_threshold == 0.0
    assert ranker.device == ComponentDevice.from_str("cpu")


def test_from_dict_no_default_parameters():
    ranker = E2RankRanker.from_dict({"type": TYPE, "init_parameters": {}})
    assert {name: getattr(ranker, name) for name in DEFAULTS} == DEFAULTS


def test_warm_up(tiny_bert, tmp_path):
    ranker = E2RankRanker(model=shutil.copytree(tiny_bert, tmp_path / "own"))
    before = loaded_models()
    ranker.warm_up()
    ranker.warm_up()
    assert loaded_models() == before + 1
    ranker.close()


def test_device_dtype_and_further_arguments_reach_the_encoder(tiny_bert):
    ranker = E2RankRanker(
        model=tiny_bert,
        device=ComponentDevice.from_str("cpu"),
        dtype="bfloat16",
        encoder_kwargs={"max_length": 16},
    )
    encoder = encoder_of(ranker)
    assert encoder.recipe.document_tokens == 16
    assert str(encoder._key.dtype) == "torch.bfloat16"
    assert encoder._key.device.type == "cpu"
    ranker.close()


# Running


@pytest.mark.parametrize("top_k", [0, -1])
def test_run_invalid_top_k(ranker, top_k):
    for given in (documents(), []):
        with pytest.raises(ValueError, match=f"top_k must be > 0, but got {top_k}"):
            ranker.run(query=QUERY, documents=given, top_k=top_k)


def test_returns_empty_list_if_no_documents_are_provided(encoded):
    answer = E2RankRanker(model="nowhere").run(query=QUERY, documents=[])
    assert answer["documents"] == []
    assert set(answer["meta"].values()) == {0}


def test_run_gives_the_ranking_and_the_scores_of_the_core(ranker, tiny_bert):
    answer = ranker.run(query=QUERY, documents=documents())
    with Encoder.from_pretrained(tiny_bert) as encoder:
        hits = ListwiseReranker(encoder).rerank(
            QUERY, [Hit(CoreDocument(d.id, d.content, d.meta), 0.0) for d in documents()]
        )
    assert ids(answer) == [hit.document.id for hit in hits[:10]]
    assert scores(answer) == pytest.approx([hit.score for hit in hits[:10]], abs=1e-5)


def test_run_top_k(ranker):
    everything = ranker.run(query=QUERY, documents=documents(), top_k=100)
    assert len(everything["documents"]) == len(documents())
    for top_k in (1, 3):
        answer = ranker.run(query=QUERY, documents=documents(), top_k=top_k)
        assert alike(answer["documents"], everything["documents"][:top_k])


def test_run_single_document(ranker):
    answer = ranker.run(query=QUERY, documents=documents()[:1])
    assert ids(answer) == ["d0"]


def test_run_ranks_a_document_without_content(ranker):
    answer = ranker.run(query=QUERY, documents=[*documents()[:2], Document(id="empty")])
    assert set(ids(answer)) == {"d0", "d1", "empty"}
    assert next(d for d in answer["documents"] if d.id == "empty").content is None


def test_run_score_threshold(ranker):
    everything = ranker.run(query=QUERY, documents=documents())
    limit = sum(scores(everything)[4:6]) / 2
    answer = ranker.run(query=QUERY, documents=documents(), score_threshold=limit)
    assert alike(answer["documents"], everything["documents"][:5])


def test_run_score_threshold_zero_overrides_init(tiny_bert, embedded):
    opposite = [replace(d, embedding=(-np.array(d.embedding)).tolist()) for d in embedded[:2]]
    strict = E2RankRanker(model=tiny_bert, score_threshold=1.1, stored_vectors="trust")
    mixed = [*embedded[2:4], *opposite]
    assert strict.run(query=QUERY, documents=mixed)["documents"] == []
    for answer in (
        strict.run(query=QUERY, documents=mixed, score_threshold=0.0),
        E2RankRanker(model=tiny_bert, score_threshold=0.0, stored_vectors="trust").run(
            query=QUERY, documents=mixed
        ),
    ):
        everything = strict.run(query=QUERY, documents=mixed, score_threshold=-1.1)
        assert len(everything["documents"]) == 4
        kept = [score for score in scores(everything) if score >= 0.0]
        assert scores(answer) == pytest.approx(kept, abs=1e-5)
        assert len(scores(answer)) < 4
    strict.close()


def test_scores_are_python_floats(ranker, embedded):
    for given in (documents(), embedded):
        for document in ranker.run(query=QUERY, documents=given)["documents"]:
            assert type(document.score) is float


def test_run_deduplicates_documents(ranker):
    first, second = documents()[:2]
    given = [
        replace(first, score=0.1),
        second,
        replace(first, score=0.7),
        replace(first, score=0.2),
    ]
    answer = ranker.run(query=QUERY, documents=given)
    assert sorted(ids(answer)) == ["d0", "d1"]
    kept = {d.id: d.meta for d in answer["documents"]}
    assert kept["d0"]["retrieval_score"] == 0.7
    assert "retrieval_score" not in kept["d1"]


def test_the_first_retrieval_score_survives_two_rankers(ranker):
    once = ranker.run(query=QUERY, documents=documents(score=0.25))["documents"]
    twice = ranker.run(query=QUERY, documents=once)["documents"]
    assert {d.meta["retrieval_score"] for d in twice} == {0.25}


def test_embed_meta(tiny_bert, encoded):
    ranker = E2RankRanker(model=tiny_bert, meta_fields_to_embed=["title"], prompt_depth=2)
    given = [Document(content=f"document {i}", meta={"title": f"title {i}"}) for i in range(3)]
    answer = ranker.run(query=QUERY, documents=given)
    composed = [f"title {i}\ndocument {i}" for i in range(3)]
    assert encoded.documents == composed
    assert encoded.prompts == [(QUERY, composed)]
    assert {d.content for d in answer["documents"]} == {d.content for d in given}
    ranker.close()


def test_embed_meta_preserves_falsy_values(tiny_bert, encoded):
    ranker = E2RankRanker(
        model=tiny_bert, meta_fields_to_embed=["rating", "sold", "name", "missing", "nothing"]
    )
    meta = {"rating": 0, "sold": False, "name": "", "nothing": None}
    ranker.run(query=QUERY, documents=[Document(content="text", meta=meta)])
    assert encoded.documents == ["0\nFalse\n\ntext"]
    ranker.close()


def test_prefix(tiny_bert, encoded):
    ranker = E2RankRanker(model=tiny_bert, query_prefix="find ", document_prefix="text ")
    ranker.run(query="cats", documents=[Document(content="dogs")])
    assert encoded.prompts == [("find cats", ["text dogs"])]
    assert encoded.documents == ["text dogs"]
    ranker.close()


def test_suffix(tiny_bert, encoded):
    ranker = E2RankRanker(model=tiny_bert, query_suffix=" now", document_suffix=" end")
    ranker.run(query="cats", documents=[Document(content="dogs")])
    assert encoded.prompts == [("cats now", ["dogs end"])]
    ranker.close()


async def test_run_async(ranker, embedded):
    for given in (documents(), embedded, []):
        expected = ranker.run(query=QUERY, documents=given, top_k=4)
        again = await ranker.run_async(query=QUERY, documents=given, top_k=4)
        assert alike(again, expected)


async def test_run_async_invalid_top_k(ranker):
    with pytest.raises(ValueError, match="top_k must be > 0, but got 0"):
        await ranker.run_async(query=QUERY, documents=documents(), top_k=0)


def test_run_in_a_pipeline(tiny_bert):
    pipeline = Pipeline()
    pipeline.add_component("ranker", E2RankRanker(model=tiny_bert, top_k=2))
    answer = pipeline.run({"ranker": {"query": QUERY, "documents": documents()}})["ranker"]
    assert len(answer["documents"]) == 2
    assert answer["meta"]["encoded"] == len(documents())
    pipeline.get_component("ranker").close()


# Stored vectors


def test_vectors_of_the_documents_are_reused_after_some_were_probed(ranker, embedded, encoded):
    expected = ranker.run(query=QUERY, documents=documents())
    encoded.documents.clear()
    answer = ranker.run(query=QUERY, documents=embedded)
    assert len(set(encoded.documents)) == PROBED_OF_MIXED
    again = ranker.run(query=QUERY, documents=embedded)
    assert (
        len(set(encoded.documents)) == len(encoded.documents) == 2 * PROBED_OF_MIXED - 1
    )  # none twice
    assert ids(answer) == ids(again) == ids(expected)
    np.testing.assert_allclose(scores(answer), scores(expected), atol=1e-5)
    assert answer["meta"]["reused"] == len(embedded)
    assert answer["meta"]["encoded"] == answer["meta"]["fetched"] == 0


def test_vectors_of_any_length_are_scored_as_cosines(ranker, embedded):
    longer = [replace(d, embedding=(3 * np.array(d.embedding)).tolist()) for d in embedded]
    expected = ranker.run(query=QUERY, documents=embedded)
    np.testing.assert_allclose(
        scores(ranker.run(query=QUERY, documents=longer)), scores(expected), atol=1e-6
    )


def test_another_models_vectors_are_refused(ranker, embedded):
    turned = np.array([d.embedding for d in embedded]) @ another_model(32)
    other = [replace(d, embedding=v.tolist()) for d, v in zip(embedded, turned, strict=True)]
    with pytest.raises(StoredVectorMismatch, match="cosine"):
        ranker.run(query=QUERY, documents=other)
    with pytest.raises(StoredVectorMismatch, match="3 dimensions"):
        ranker.run(query=QUERY, documents=[replace(embedded[0], embedding=[1.0, 0.0, 0.0])])


def test_ignored_vectors_are_encoded_anew(tiny_bert, embedded, encoded):
    ranker = E2RankRanker(
        model=tiny_bert,
        stored_vectors="ignore",
        document_store=QdrantStore.open(":memory:", "not there"),
    )
    answer = ranker.run(query=QUERY, documents=[replace(d, embedding=[1.0]) for d in embedded])
    assert encoded.documents == [d.content for d in embedded]
    assert answer["meta"]["encoded"] == len(embedded)
    assert answer["meta"]["reused"] == answer["meta"]["fetched"] == 0
    ranker.close()


@pytest.mark.parametrize("use_sparse_embeddings", [False, True])
def test_vectors_are_fetched_for_documents_without_one(
    tiny_bert, embedded, encoded, use_sparse_embeddings
):
    store = memory_store(32, embedded, use_sparse_embeddings=use_sparse_embeddings)
    ranker = E2RankRanker(model=tiny_bert, document_store=store)
    answer = ranker.run(query=QUERY, documents=documents())
    assert len(encoded.documents) == 2  # the probe
    assert answer["meta"]["fetched"] == len(embedded)
    assert answer["meta"]["reused"] == answer["meta"]["encoded"] == 0
    assert all(d.embedding is None for d in answer["documents"])
    assert ids(answer) == ids(ranker.run(query=QUERY, documents=embedded))
    ranker.close()


def test_a_store_with_the_encoders_fingerprint_needs_no_probe(tiny_bert, encoded):
    with Encoder.from_pretrained(tiny_bert) as encoder:
        store = QdrantStore.open(":memory:", "docs")
        store.prepare(encoder.dim, fingerprint=encoder.fingerprint)
        core = [CoreDocument(d.id, d.content, d.meta) for d in documents()]
        store.upsert(core, encoder.encode_documents([d.text for d in core]))
    encoded.documents.clear()
    ranker = E2RankRanker(model=tiny_bert, document_store=store)
    assert ranker.run(query=QUERY, documents=documents())["meta"]["fetched"] == 12
    assert encoded.documents == []
    ranker.close()


def test_vectors_come_from_the_documents_the_store_and_the_model(tiny_bert, embedded, encoded):
    store = memory_store(32, embedded[:8])
    ranker = E2RankRanker(model=tiny_bert, document_store=store)
    changed = replace(documents()[4], content="this text is new")
    given = [*embedded[:3], documents()[3], changed, *documents()[5:]]
    meta = ranker.run(query=QUERY, documents=given)["meta"]
    # d3, d5, d6, d7 are in the store; d4 has another text there, d8 to d11 are not there.
    assert (meta["reused"], meta["fetched"], meta["encoded"]) == (3, 4, 5)
    assert encoded.documents[-5:] == [changed.content, *(d.content for d in documents()[8:])]
    ranker.close()


def test_another_models_collection_is_refused(tiny_bert, embedded):
    turned = np.array([d.embedding for d in embedded]) @ another_model(32)
    store = memory_store(
        32, [replace(d, embedding=v.tolist()) for d, v in zip(embedded, turned, strict=True)]
    )
    ranker = E2RankRanker(model=tiny_bert, document_store=store)
    with pytest.raises(StoredVectorMismatch, match="collection 'docs'"):
        ranker.run(query=QUERY, documents=documents())
    ranker.close()


def test_fetched_vectors_of_embedded_meta_pass_the_probe(tiny_bert):
    embedder = E2RankDocumentEmbedder(
        model=tiny_bert, meta_fields_to_embed=["number"], prefix="text "
    )
    store = memory_store(32, embedder.run(documents())["documents"])
    same = E2RankRanker(
        model=tiny_bert,
        document_store=store,
        meta_fields_to_embed=["number"],
        document_prefix="text ",
    )
    assert same.run(query=QUERY, documents=documents())["meta"]["fetched"] == 12
    for component in (embedder, same):
        component.close()


def test_what_was_in_the_prompt_is_reported(tiny_bert, encoded):
    ranker = E2RankRanker(model=tiny_bert, prompt_depth=3)
    meta = ranker.run(query=QUERY, documents=documents())["meta"]
    assert meta["prompt_documents"] == 3
    assert meta["prompt_documents_cut"] == 0
    assert 3 * 5 < meta["prompt_tokens"] <= 128
    ranker.close()


def test_inputs_stay_what_they_were(ranker, embedded):
    given = [replace(d, score=0.5, meta={"deep": {"list": [1]}}) for d in embedded]
    before = copy.deepcopy([d.to_dict() for d in given])
    ranker.run(query=QUERY, documents=given)
    assert [d.to_dict() for d in given] == before
