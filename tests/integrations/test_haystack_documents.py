"""A document comes back whole, and is known by what was embedded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from haystack import Document
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack_integrations.components.embedders.e2rank import E2RankDocumentEmbedder
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from qdrant_client import QdrantClient

from e2rank_rag.store import QdrantStore
from tests.integrations.haystack_kit import QUERY, TEXTS, Encoded, alike, memory_store, scores

TITLES = ["Cats", "Dogs", "Ferries", "Bridges"]


@pytest.fixture
def encoded(monkeypatch):
    return Encoded(monkeypatch)


def titled(titles=TITLES, texts=TEXTS):
    return [
        Document(id=f"d{number}", content=text, meta={"title": title})
        for number, (title, text) in enumerate(zip(titles, texts, strict=False))
    ]


def embedded(model, documents, **options):
    embedder = E2RankDocumentEmbedder(model=model, **options)
    done = embedder.run(documents)["documents"]
    embedder.close()
    return done


# A document comes back whole

WHOLE = [
    Document(id="text", content="cats sleep", meta={"deep": {"list": [1, None, "x"]}, "no": None}),
    Document(
        id="blob",
        content="dogs bark",
        blob=ByteStream(b"\x00\xff", meta={"page": 3}, mime_type="image/png"),
    ),
    Document(id="picture", blob=ByteStream(b"\x01"), meta={"title": "a cat"}),
    Document(id="empty", content=""),
    Document(
        id="sparse",
        content="ferries",
        sparse_embedding=SparseEmbedding(indices=[3, 700], values=[0.5, 1.5]),
    ),
    Document(
        id="stale", content="bridges", meta={"retrieval_score": 99.0, "score": 1, "content": "x"}
    ),
]


@pytest.mark.parametrize("hybrid", [False, True], ids=["dense", "hybrid"])
@pytest.mark.parametrize("expand", [False, True])
async def test_a_document_comes_back_whole(hybrid, expand, tiny_bert):
    given = embedded(tiny_bert, WHOLE)
    store = memory_store(32, given, use_sparse_embeddings=hybrid)
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=10, expand=expand)
    plain = retriever.run(QUERY)["documents"]
    whole = retriever.run(QUERY, return_embedding=True)["documents"]
    assert alike(await retriever.run_async(QUERY, return_embedding=True), {"documents": whole})
    by_id = {document.id: document for document in given}
    assert {document.id for document in whole} == set(by_id)
    for found, bare in zip(whole, plain, strict=True):
        original = by_id[found.id]
        assert found.content == bare.content == original.content
        assert found.blob == bare.blob == original.blob
        assert found.embedding == pytest.approx(original.embedding, abs=1e-6)
        assert found.sparse_embedding == original.sparse_embedding
        assert (bare.embedding, bare.sparse_embedding) == (None, None)
        cosine = found.meta["retrieval_score"]
        assert found.meta == {**original.meta, "retrieval_score": cosine}
        assert -1.001 < cosine < 1.001
        assert type(found.score) is float
    retriever.close()


@pytest.mark.parametrize("hybrid", [False, True], ids=["dense", "hybrid"])
@pytest.mark.parametrize("form", ["location", "client", "QdrantStore", "QdrantStore of a client"])
def test_a_document_comes_back_whole_from_a_collection_in_any_form(
    form, hybrid, tiny_bert, tmp_path
):
    given = embedded(tiny_bert, WHOLE)
    path = str(tmp_path)
    written = QdrantDocumentStore(
        path=path, index="docs", embedding_dim=32, use_sparse_embeddings=hybrid, progress_bar=False
    )
    written.write_documents(given)
    written.close()
    which = {"collection": "docs", "vector_name": "text-dense" if hybrid else None}
    client = QdrantClient(path=path) if form == "QdrantStore of a client" else {"path": path}
    store = {"location": path, **which} if form == "location" else {"client": client, **which}
    if form.startswith("QdrantStore"):
        store = QdrantStore(client, "docs", vector_name=which["vector_name"])
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=10, return_embedding=True)
    found = {document.id: document for document in retriever.run(QUERY)["documents"]}
    for original in given:
        kept = [
            (document.content, document.blob, document.sparse_embedding)
            for document in (original, found[original.id])
        ]
        assert kept[0] == kept[1]
    retriever.close()
    for each in (store, client):
        if not isinstance(each, dict):
            each.close()


def test_a_document_comes_back_whole_from_the_ranker(tiny_bert):
    ranker = E2RankRanker(model=tiny_bert)
    by_id = {document.id: document for document in WHOLE}
    for found in ranker.run(QUERY, WHOLE)["documents"]:
        assert replace(found, score=None) == by_id[found.id]
    ranker.close()


# The same text means what was embedded, not the content


@pytest.mark.parametrize("changed", ["title", "content", "both"])
@pytest.mark.parametrize("ours", [False, True], ids=["QdrantDocumentStore", "QdrantStore"])
async def test_the_same_text_means_what_was_embedded_not_the_content(
    changed, ours, tiny_bert, encoded
):
    written = titled()
    store = memory_store(32, embedded(tiny_bert, written, meta_fields_to_embed=["title"]))
    now = titled(
        ["Ships", *TITLES[1:]] if changed != "content" else TITLES,
        ["ships sail", *TEXTS[1:]] if changed != "title" else TEXTS,
    )
    options = {"model": tiny_bert, "meta_fields_to_embed": ["title"]}
    alone = E2RankRanker(**options)
    expected = alone.run(QUERY, now)
    with_store = E2RankRanker(
        **options, document_store=QdrantStore(store._client, "docs") if ours else store
    )
    encoded.documents.clear()
    for answer in (with_store.run(QUERY, now), await with_store.run_async(QUERY, now)):
        assert scores(answer) == pytest.approx(scores(expected), abs=1e-5)
        assert answer["meta"]["fetched"] == 3
        assert answer["meta"]["encoded"] == 1
    alone.close()
    with_store.close()


def test_a_text_that_is_the_same_by_other_parts_is_the_same(tiny_bert):
    """Only what is embedded counts: a meta field that is not may change."""
    store = memory_store(32, embedded(tiny_bert, titled(), meta_fields_to_embed=["title"]))
    now = [replace(d, meta={**d.meta, "views": 7}) for d in titled()]
    moved = replace(now[0], content=f"{TITLES[0]}\n{TEXTS[0]}", meta={})
    ranker = E2RankRanker(model=tiny_bert, meta_fields_to_embed=["title"], document_store=store)
    assert ranker.run(QUERY, [moved, *now[1:]])["meta"]["fetched"] == 4
    ranker.close()
