"""The components with an E2Rank, a ResRank and a RankT5: one interface, the core's answers."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from haystack import Pipeline
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from e2rank_rag.errors import CheckpointError, StoredVectorMismatch
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import load_reranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document as CoreDocument
from e2rank_rag.types import Hit
from tests.cross_encoders import write_bert_cross_encoder
from tests.encoders import another_model
from tests.integrations.haystack_kit import (
    QUERY,
    Encoded,
    alike,
    documents,
    ids,
    memory_store,
    scores,
)


@pytest.fixture(scope="module")
def tiny_cross(tmp_path_factory):
    """Another library's cross-encoder: a BERT that does not say that it is a RankT5."""
    return write_bert_cross_encoder(tmp_path_factory.mktemp("tiny-cross"))


@pytest.fixture(params=["e2rank", "resrank", "rankt5 t5", "rankt5 bert"])
def model(request, tiny_bert, tiny_resrank, tiny_rankt5, tiny_cross):
    """The arguments that name a model of each system, to rank and to retrieve with."""
    ranker, retriever = {
        "e2rank": ({"model": tiny_bert}, {"model": tiny_bert}),
        "resrank": ({"model": tiny_resrank}, {"model": tiny_resrank}),
        "rankt5 t5": ({"model": tiny_rankt5}, {"model": tiny_bert, "reranker": tiny_rankt5}),
        "rankt5 bert": (
            {"model": tiny_cross, "system": "rankt5"},
            {"model": tiny_bert, "reranker": tiny_cross, "system": "rankt5"},
        ),
    }[request.param]
    return SimpleNamespace(ranker=ranker, retriever=retriever)


@pytest.fixture(scope="module")
def store(embedded):
    store = memory_store(32, embedded)
    yield store
    store.close()


def hits(given):
    return [Hit(CoreDocument(d.id, d.content, d.meta), 0.0) for d in given]


# The ranker


async def test_a_ranker_gives_the_ranking_of_its_models_system(model, embedded):
    with load_reranker(**model.ranker) as core:
        expected = core.rerank(QUERY, hits(documents()))
    ranker = E2RankRanker(**model.ranker, top_k=12)
    answer = ranker.run(query=QUERY, documents=documents())
    assert ids(answer) == [hit.document.id for hit in expected]
    assert scores(answer) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert len(set(scores(answer))) == 12
    with_vectors = ranker.run(query=QUERY, documents=embedded)
    assert ids(with_vectors) == ids(answer)
    assert alike(await ranker.run_async(query=QUERY, documents=embedded), with_vectors)
    ranker.close()


def test_a_rankt5_reads_no_vector_wherever_it_lies(tiny_rankt5, embedded, monkeypatch):
    encoded = Encoded(monkeypatch)
    nowhere = QdrantStore.open(":memory:", "not there")
    ranker = E2RankRanker(model=tiny_rankt5, document_store=nowhere)
    strange = [replace(d, embedding=[1.0, 2.0]) for d in embedded[:4]]
    meta = ranker.run(query=QUERY, documents=[*strange, *documents()[4:]])["meta"]
    assert (encoded.documents, encoded.queries, encoded.prompts) == ([], [], [])
    assert meta.pop("prompt_tokens") > 12 * 8
    assert meta == {
        "reused": 0,
        "fetched": 0,
        "encoded": 0,
        "prompt_documents": 12,
        "prompt_documents_cut": 0,
    }
    ranker.close()


def test_a_resrank_reuses_the_vectors_that_its_encoder_wrote(
    tiny_resrank, embedded, store, monkeypatch
):
    encoded = Encoded(monkeypatch)
    ranker = E2RankRanker(model=tiny_resrank, document_store=store)
    meta = ranker.run(query=QUERY, documents=[*embedded[:3], *documents()[3:]])["meta"]
    assert (meta["reused"], meta["fetched"], meta["encoded"]) == (3, 9, 0)
    assert meta["prompt_documents"] == 12  # a token each
    # Two probes: of all that came with the documents, and of two from the store.
    assert len(encoded.documents) == 5
    assert {documents()[n].content for n in range(3)} < set(encoded.documents)
    turned = np.array([d.embedding for d in embedded]) @ another_model(32)
    other = [replace(d, embedding=v.tolist()) for d, v in zip(embedded, turned, strict=True)]
    strict = E2RankRanker(model=tiny_resrank)
    with pytest.raises(StoredVectorMismatch, match="cosine"):
        strict.run(query=QUERY, documents=other)
    for component in (ranker, strict):
        component.close()


def test_options_of_an_e2rank_are_refused_by_other_systems(tiny_resrank, tiny_rankt5, store):
    options = {"prompt_depth": 3, "query_weight": 0.5}
    ranker = E2RankRanker(model=tiny_rankt5, **options)
    with pytest.raises(ValueError, match=r"prompt_depth, query_weight: only an E2Rank.*'rankt5'"):
        ranker.run(query=QUERY, documents=documents())
    retriever = E2RankRetriever(store, model=tiny_resrank, query_weight=0.5)
    with pytest.raises(ValueError, match=r"^query_weight: only an E2Rank has this.*'resrank'"):
        retriever.run(query=QUERY)
    retriever.close()


def test_a_system_is_only_stated_where_the_folder_does_not(tiny_rankt5, tiny_cross):
    with pytest.raises(ValueError, match="says that it is 'rankt5', not 'resrank'"):
        E2RankRanker(model=tiny_rankt5, system="resrank").warm_up()
    with pytest.raises(ValueError, match=r"system must be one of .* got 'bm25'"):
        E2RankRanker(model=tiny_rankt5, system="bm25").warm_up()
    ranker = E2RankRanker(model=tiny_cross)
    ranker.warm_up()  # a classifier with one label
    ranker.close()


def test_a_retrievers_system_is_that_of_its_reranker(tiny_bert, store):
    with pytest.raises(ValueError, match=r"system='rankt5' .* reranker"):
        E2RankRetriever(store, model=tiny_bert, system="rankt5")


# The retriever


async def test_a_retriever_gives_the_ranking_of_the_pipeline(model, store):
    retriever = E2RankRetriever(store, **model.retriever, top_k=5)
    answer = retriever.run(query=QUERY)
    searching, system = model.retriever["model"], model.retriever.get("system")
    with (
        Encoder.from_pretrained(searching) as encoder,
        load_reranker(model.retriever.get("reranker", searching), system=system) as reranker,
    ):
        core = SearchPipeline(encoder, QdrantStore(store._client, "docs"), reranker)
        expected = core.search(QUERY, top_k=5)
    assert ids(answer) == [hit.document.id for hit in expected]
    assert scores(answer) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert alike(await retriever.run_async(query=QUERY), answer)
    retriever.close()


def test_a_second_search_needs_a_vector_of_the_reranker(
    tiny_bert, tiny_resrank, tiny_rankt5, store
):
    for models in ({"model": tiny_resrank}, {"model": tiny_bert, "reranker": tiny_rankt5}):
        retriever = E2RankRetriever(store, **models, expand=True)
        with pytest.raises(ValueError, match="does not have; use ListwiseReranker"):
            retriever.run(query=QUERY)
        retriever.close()


def test_a_closed_retriever_keeps_no_weights(tiny_resrank, store):
    retriever = E2RankRetriever(store, model=tiny_resrank)
    retriever.run(query=QUERY)
    weights = weakref.ref(retriever._open().model.lists.backbone.transformer)
    retriever.close()
    gc.collect()
    assert weights() is None


def test_another_models_collection_is_refused_whatever_reranks(
    tiny_bert, tiny_resrank, tiny_rankt5, embedded
):
    turned = np.array([d.embedding for d in embedded]) @ another_model(32)
    other = [replace(d, embedding=v.tolist()) for d, v in zip(embedded, turned, strict=True)]
    store = memory_store(32, other)
    for models in ({"model": tiny_resrank}, {"model": tiny_bert, "reranker": tiny_rankt5}):
        retriever = E2RankRetriever(store, **models)
        with pytest.raises(StoredVectorMismatch, match="another model wrote it"):
            retriever.run(query=QUERY)
        retriever.close()
    with pytest.raises(CheckpointError, match="this model as the reranker"):
        E2RankRetriever(store, model=tiny_rankt5).run(query=QUERY)
    store.close()


# Together


def test_embedders_take_the_encoder_of_a_resrank(tiny_resrank, embedded):
    writer, asker = (
        E2RankDocumentEmbedder(model=tiny_resrank),
        E2RankTextEmbedder(model=tiny_resrank),
    )
    vectors = [d.embedding for d in writer.run(documents())["documents"]]
    np.testing.assert_allclose(vectors, [d.embedding for d in embedded], atol=1e-5)
    with Encoder.from_pretrained(tiny_resrank) as encoder:
        expected = encoder.encode_queries([QUERY])[0]
    np.testing.assert_allclose(asker.run(text=QUERY)["embedding"], expected, atol=1e-5)
    for component in (writer, asker):
        component.close()


def resaved(folder, system, target):
    """A model as it was loaded, written anew."""
    with load_reranker(folder, system=system) as reranker:
        return (reranker.encoder if system == "e2rank" else reranker.model).save(target)


@pytest.mark.parametrize("system", ["e2rank", "resrank", "rankt5"])
def test_every_system_survives_save_load_and_the_yaml_round_trip(
    system, tiny_bert, tiny_resrank, tiny_rankt5, embedded, tmp_path
):
    """Trained, saved, loaded, saved again; retrieved and ranked in a pipeline that was YAML."""
    index = {"path": str(tmp_path / "index"), "index": "docs", "embedding_dim": 32}
    original = {"e2rank": tiny_bert, "resrank": tiny_resrank, "rankt5": tiny_rankt5}[system]
    copied = resaved(original, system, tmp_path / "copy")
    answers = []
    for folder in (original, copied):
        own = {"reranker": folder, "model": tiny_bert} if system == "rankt5" else {"model": folder}
        store = QdrantDocumentStore(**index, progress_bar=False)
        if not answers:
            store.write_documents(embedded)
        pipeline = Pipeline()
        pipeline.add_component("retriever", E2RankRetriever(store, **own, top_k=8))
        pipeline.add_component("ranker", E2RankRanker(model=folder, top_k=5))
        pipeline.connect("retriever", "ranker")
        asked = {"retriever": {"query": QUERY}, "ranker": {"query": QUERY}}
        answers.append(pipeline.run(asked)["ranker"])
        with (tmp_path / "pipeline.yaml").open("w") as file:
            pipeline.dump(file)
        close(pipeline)
        with (tmp_path / "pipeline.yaml").open() as file:
            loaded = Pipeline.load(file)
        assert loaded.dumps() == (tmp_path / "pipeline.yaml").read_text()
        answers.append(loaded.run(asked)["ranker"])
        close(loaded)
    assert len(ids(answers[0])) == 5
    assert all(alike(answer, answers[0]) for answer in answers[1:])


def close(pipeline):
    for name in ("retriever", "ranker"):
        pipeline.get_component(name).close()


@pytest.mark.parametrize("system", ["resrank", "rankt5"])
def test_models_are_loaded_late_shared_and_freed(
    system, tiny_bert, tiny_resrank, tiny_rankt5, store
):
    before = loaded_models()
    folder = {"resrank": tiny_resrank, "rankt5": tiny_rankt5}[system]
    own = {"model": tiny_bert, "reranker": folder} if system == "rankt5" else {"model": folder}
    retriever, ranker = E2RankRetriever(store, **own, top_k=8), E2RankRanker(model=folder)
    with Encoder.from_pretrained(own["model"]):
        opened = loaded_models()
        retriever.to_dict(), ranker.to_dict()
        assert ranker.run(query=QUERY, documents=[])["documents"] == []
        assert loaded_models() == opened
        retriever.warm_up(), ranker.warm_up()
        # What reranks; the encoder is there.
        assert loaded_models() == opened + 1
        found = retriever.run(query=QUERY)
        expected = ranker.run(query=QUERY, documents=found["documents"])
    for _ in range(2):
        retriever.close(), ranker.close()
        assert loaded_models() == before
    again = ranker.run(query=QUERY, documents=retriever.run(query=QUERY)["documents"])
    assert alike(again, expected)
    retriever.close(), ranker.close()
    assert loaded_models() == before
