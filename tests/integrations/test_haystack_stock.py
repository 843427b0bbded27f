"""E2RankRetriever and E2RankRanker against the stock components, on what stock tools wrote."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from haystack import Pipeline
from haystack_integrations.components.embedders.e2rank import (
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.vectors import PROBED_OF_MIXED
from tests.encoders import another_model
from tests.integrations.haystack_kit import (
    QUERY,
    Encoded,
    documents,
    ids,
    memory_store,
    scores,
)


@pytest.fixture
def encoded(monkeypatch):
    return Encoded(monkeypatch)


@pytest.fixture(scope="module")
def store(embedded):
    store = memory_store(32, embedded)
    yield store
    store.close()


def stock_chain(store, model, *, top_k=10, retrieve_k=100):
    pipeline = Pipeline()
    pipeline.add_component("embedder", E2RankTextEmbedder(model=model))
    pipeline.add_component(
        "retriever", QdrantEmbeddingRetriever(store, top_k=retrieve_k, return_embedding=True)
    )
    pipeline.add_component("ranker", E2RankRanker(model=model, top_k=top_k))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def test_the_stock_chain_and_the_fused_retriever_give_the_same_ranking(store, tiny_bert):
    chain = stock_chain(store, tiny_bert)
    fused = E2RankRetriever(store, model=tiny_bert)
    for query in (QUERY, "ferry and wind", "what makes bread rise?"):
        stock = chain.run({"embedder": {"text": query}, "ranker": {"query": query}})["ranker"]
        ours = fused.run(query=query)
        assert ids(ours) == ids(stock)
        np.testing.assert_allclose(scores(ours), scores(stock), atol=1e-6)
    for name in ("embedder", "ranker"):
        chain.get_component(name).close()
    fused.close()


def test_a_sentence_transformers_collection_is_reranked_as_it_is(minilm, tmp_path, encoded):
    """Written by sentence-transformers through qdrant-haystack, with the real MiniLM."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from e2rank_rag.models.shipped import minilm_folder

    theirs = sentence_transformers.SentenceTransformer(
        str(minilm_folder()), device="cpu", local_files_only=True
    )
    vectors = theirs.encode([d.content for d in documents()], show_progress_bar=False)
    store = folder_store_of_minilm(tmp_path)
    store.write_documents(
        [replace(d, embedding=v.tolist()) for d, v in zip(documents(), vectors, strict=True)]
    )
    fused = E2RankRetriever(document_store=store, model="minilm", top_k=5)
    answer = fused.run(query=QUERY)
    assert set(ids(answer)[:2]) == {"d0", "d8"}
    assert len(encoded.documents) == 2  # the probe
    stock = stock_chain(store, "minilm", top_k=5)
    chained = stock.run({"embedder": {"text": QUERY}, "ranker": {"query": QUERY}})["ranker"]
    assert ids(chained) == ids(answer)
    assert len(encoded.documents) == 2 + PROBED_OF_MIXED  # of what the documents carry
    fetching = E2RankRanker(model="minilm", top_k=5, document_store=store)
    fetched = fetching.run(query=QUERY, documents=stock_order(store, minilm))
    assert ids(fetched) == ids(answer)
    assert fetched["meta"]["fetched"] == 12
    assert len(encoded.documents) == 2 + PROBED_OF_MIXED + 2  # two that were fetched
    turned = vectors @ another_model(384)
    of_another_model = memory_store(
        384, [replace(d, embedding=v.tolist()) for d, v in zip(documents(), turned, strict=True)]
    )
    refusing = E2RankRetriever(document_store=of_another_model, model="minilm")
    with pytest.raises(StoredVectorMismatch, match="another model wrote it"):
        refusing.run(query=QUERY)
    for name in ("embedder", "ranker"):
        stock.get_component(name).close()
    for component in (fused, fetching, refusing):
        component.close()


def folder_store_of_minilm(folder):
    return QdrantDocumentStore(
        path=str(folder), index="docs", embedding_dim=384, progress_bar=False
    )


def stock_order(store, minilm):
    """The documents in the order of plain retrieval, without vectors."""
    embedding = minilm.encode_queries([QUERY])[0].tolist()
    retriever = QdrantEmbeddingRetriever(store, top_k=100)
    return retriever.run(query_embedding=embedding)["documents"]
