"""Vectors that change under Haystack's components, or are another model's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.indexing import index_documents
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document as CoreDocument
from tests.encoders import another_model
from tests.integrations.haystack_kit import QUERY, alike, ids, memory_store, scores


def turned_documents(embedded):
    turned = np.array([d.embedding for d in embedded]) @ another_model(32)
    return [replace(d, embedding=v.tolist()) for d, v in zip(embedded, turned, strict=True)]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_open_retriever_refuses_a_collection_that_another_model_wrote_anew(
    tiny_bert, embedded, asynchronous
):
    store = memory_store(32, embedded)
    retriever = E2RankRetriever(document_store=store, model=tiny_bert)
    expected = retriever.run(query=QUERY)
    store.delete_all_documents(recreate_index=True)
    store.write_documents(turned_documents(embedded))
    for _ in range(2):
        with pytest.raises(StoredVectorMismatch):
            _ = await retriever.run_async(QUERY) if asynchronous else retriever.run(QUERY)
    store.delete_all_documents(recreate_index=True)
    store.write_documents(embedded)
    assert alike(retriever.run(query=QUERY), expected)
    retriever.close()


@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_ranker_refuses_foreign_vectors_in_each_list_wherever_they_stand(tiny_bert, embedded, at):
    ranker = E2RankRanker(model=tiny_bert)
    ranker.run(query=QUERY, documents=embedded)
    joined = [*embedded]
    joined[at] = turned_documents(embedded)[at]
    for given in (turned_documents(embedded), joined):
        with pytest.raises(StoredVectorMismatch, match="in the candidates has cosine"):
            ranker.run(query=QUERY, documents=given)
    ranker.close()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_embedding_may_be_an_array(tiny_bert, embedded, dtype):
    ranker = E2RankRanker(model=tiny_bert)
    expected = ranker.run(query=QUERY, documents=embedded)
    arrays = [replace(d, embedding=np.asarray(d.embedding, dtype=dtype)) for d in embedded]
    answer = ranker.run(query=QUERY, documents=arrays)
    np.testing.assert_allclose(scores(answer), scores(expected), atol=1e-3)
    assert answer["meta"]["encoded"] == 0
    with pytest.raises(ValueError, match=r"2-D"):
        ranker.run(query=QUERY, documents=[replace(d, embedding=np.eye(32)) for d in embedded])
    ranker.close()


@pytest.mark.parametrize("number", [np.nan, 0.0])
def test_a_document_whose_embedding_has_no_direction_is_encoded_anew(tiny_bert, embedded, number):
    ranker = E2RankRanker(model=tiny_bert)
    expected = ranker.run(query=QUERY, documents=embedded)
    broken = [replace(embedded[0], embedding=[number] * 32), *embedded[1:]]
    answer = ranker.run(query=QUERY, documents=broken)
    assert ids(answer) == ids(expected)
    np.testing.assert_allclose(scores(answer), scores(expected), atol=1e-5)
    assert answer["meta"]["encoded"] == 1
    ranker.close()


@pytest.mark.parametrize("change", ["text", "meta"])
def test_indexing_again_keeps_the_sparse_vector_and_the_blob_of_a_point(
    tiny_bert, embedded, change
):
    sparse = SparseEmbedding(indices=[1, 7], values=[0.5, 0.25])
    blob = ByteStream(b"picture", mime_type="image/png")
    store = memory_store(32, use_sparse_embeddings=True)
    store.write_documents([replace(d, sparse_embedding=sparse, blob=blob) for d in embedded])
    ours = QdrantStore(store._client, "docs", vector_name="text-dense")
    first, *rest = [CoreDocument(d.id, d.content, d.meta) for d in embedded]
    changed = replace(first, text="cats are new") if change == "text" else replace(first, meta={})
    with Encoder.from_pretrained(tiny_bert) as encoder:
        report = index_documents([changed, *rest], encoder, ours)
        vector = encoder.encode_documents([changed.text])[0]
    assert (report.updated, report.meta_updated, report.unchanged) == (
        (1, 0, 11) if change == "text" else (0, 1, 11)
    )
    (read,) = [d for d in store.filter_documents() if d.id == first.id]
    assert (read.content, read.meta) == (changed.text, changed.meta)
    assert (read.sparse_embedding, read.blob) == (sparse, blob)
    np.testing.assert_allclose(
        ours.get([first.id], with_embeddings=True)[first.id][1], vector, atol=1e-6
    )
    store.close()
