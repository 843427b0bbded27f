"""E2RankReranker: alone, behind every kind of retriever, and over an index that others wrote."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentence_transformers
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MultiQueryRetriever,
)
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListLLM
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool
from langchain_e2rank import E2RankEmbeddings, E2RankReranker, E2RankVectorStore
from langchain_qdrant import QdrantVectorStore
from pydantic import ValidationError
from qdrant_client import QdrantClient, models

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.rerankers import ListwiseReranker, load_reranker
from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from e2rank_rag.types import Document as CoreDocument
from e2rank_rag.types import Hit
from tests.cross_encoders import write_bert_cross_encoder
from tests.encoders import CountingEncoder, another_model
from tests.integrations.langchain_parts import (
    IDS,
    QUERY,
    TEXTS,
    Bm25,
    EncoderEmbeddings,
    contents,
    documents,
    same,
    scores,
    ticks_during,
)


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    reranker = E2RankReranker(model=tiny_bert, top_n=None)
    yield reranker
    reranker.close()


def counting(encoder, **options):
    """A reranker that opens no model, but asks this one, and counts what it asks."""
    reranker = E2RankReranker(top_n=None, **options)
    reranker._opened.put(reranker.stated(), CountingEncoder(encoder))
    return reranker


# Alone.


def test_the_ranking_is_the_cores_with_ids_metadata_and_python_floats(reranker, bert):
    hits = [Hit(CoreDocument(id, text), 0.0) for id, text in zip(IDS, TEXTS, strict=True)]
    expected = ListwiseReranker(bert).rerank(QUERY, hits)
    found = reranker.compress_documents(documents(), QUERY)
    assert [d.id for d in found] == [hit.document.id for hit in expected]
    assert scores(found) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert scores(found) == sorted(scores(found), reverse=True)
    assert all(type(score) is float for score in scores(found))
    kinds = {d.id: d.metadata["kind"] for d in documents()}
    assert {d.id: d.metadata["kind"] for d in found} == kinds


def test_inputs_stay_as_they_are(reranker):
    given = documents()
    reranker.compress_documents(given, QUERY)
    assert given == documents()


def test_documents_without_ids_are_copies_where_text_and_metadata_are_the_same(reranker):
    found = reranker.compress_documents([Document(page_content=TEXTS[0])] * 3, QUERY)
    assert [(d.id, d.page_content) for d in found] == [(None, TEXTS[0])]
    pages = [Document(page_content=TEXTS[0], metadata={"page": page}) for page in (1, 2, 1)]
    # Equal texts may differ in the last digit of their scores, and so in order.
    assert sorted(d.metadata["page"] for d in reranker.compress_documents(pages, QUERY)) == [1, 2]
    # An id may look like anything that stands for documents without one.
    named = [Document(id=str(place), page_content=TEXTS[place]) for place in (1, 2, 0)]
    mixed = [*named, *(Document(page_content=text) for text in TEXTS[3:5])]
    assert len(reranker.rank(mixed, QUERY)) == 5


def test_an_earlier_score_is_kept_beside_the_new_one(reranker):
    given = [Document(page_content=TEXTS[0], metadata={"relevance_score": 7.5})]
    (found,) = reranker.compress_documents(given, QUERY)
    assert found.metadata["retrieval_score"] == 7.5
    assert found.metadata["relevance_score"] < 7.5


@pytest.mark.parametrize(("top_n", "count"), [(3, 3), (1, 1), (100, 8), (None, 8)])
def test_top_n(tiny_bert, top_n, count):
    reranker = E2RankReranker(model=tiny_bert, top_n=top_n)
    assert len(reranker.compress_documents(documents(), QUERY)) == count
    reranker.close()


async def test_nothing_to_rank_opens_no_model(tmp_path):
    reranker = E2RankReranker(model=tmp_path / "nothing")
    assert reranker.compress_documents([], QUERY) == []
    assert await reranker.acompress_documents([], QUERY) == []


@pytest.mark.parametrize(
    "wrong", [{"top_n": 0}, {"passes": 0}, {"stored_vectors": "maybe"}, {"x": 1}]
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValidationError):
        E2RankReranker(**wrong)


def test_the_configuration_makes_the_same_component_again(tiny_bert):
    reranker = E2RankReranker(
        model=tiny_bert, top_n=2, prompt_depth=4, client=QdrantClient(":memory:")
    )
    settings = reranker.model_dump()
    assert "client" not in settings
    again = E2RankReranker(**settings)
    assert again.model_dump() == settings
    assert again.layout == LANGCHAIN_LAYOUT
    assert E2RankReranker.model_validate_json(reranker.model_dump_json()).prompt_depth == 4


def test_options_reach_the_core(tiny_bert, bert):
    reranker = counting(bert, prompt_depth=2, query_weight=0.5, passes=2)
    reranker.compress_documents(documents(), QUERY)
    assert [(p["depth"], p["query_weight"]) for p in reranker.encoder.prompts] == [(2, 0.5)] * 2


async def test_async_gives_the_same(reranker):
    assert same(
        await reranker.acompress_documents(documents(), QUERY),
        reranker.compress_documents(documents(), QUERY),
    )


async def test_the_event_loop_ticks_while_reranking(reranker):
    many = [Document(page_content=f"{text} {n}") for n in range(40) for text in TEXTS]
    assert await ticks_during(reranker.acompress_documents(many, QUERY)) >= 5


async def test_threads_and_tasks_give_the_answers_of_one_thread(reranker):
    lists = [documents()[start:] for start in range(8)]
    expected = [reranker.compress_documents(docs, QUERY) for docs in lists]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda docs: reranker.compress_documents(docs, QUERY), lists))
    tasks = await asyncio.gather(*(reranker.acompress_documents(d, QUERY) for d in lists))
    for one, two, other in zip(found, tasks, expected, strict=True):
        assert same(one, other)
        assert same(two, other)


def test_a_closed_reranker_opens_its_model_again(tiny_xlmr):
    reranker = E2RankReranker(model=tiny_xlmr)
    first = reranker.compress_documents(documents(), QUERY)
    reranker.close()
    assert same(reranker.compress_documents(documents(), QUERY), first)
    reranker.close()


# Other systems.


@pytest.fixture(params=["resrank", "rankt5"])
def other(request, tiny_resrank, tiny_rankt5):
    return {"resrank": tiny_resrank, "rankt5": tiny_rankt5}[request.param]


async def test_a_reranker_is_what_the_folder_says(other):
    hits = [Hit(CoreDocument(id, text), 0.0) for id, text in zip(IDS, TEXTS, strict=True)]
    with load_reranker(other) as core:
        expected = core.rerank(QUERY, hits)
    reranker = E2RankReranker(model=other, top_n=None)
    found = reranker.compress_documents(documents(), QUERY)
    assert [d.id for d in found] == [hit.document.id for hit in expected]
    assert scores(found) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert same(await reranker.acompress_documents(documents(), QUERY), found)
    again = E2RankReranker(**reranker.model_dump())
    assert same(again.compress_documents(documents(), QUERY), found)
    for component in (reranker, again):
        component.close()


@pytest.mark.parametrize("named", [{}, {"system": "rankt5"}])
def test_another_librarys_cross_encoder_is_what_its_config_says(tmp_path, named):
    folder = write_bert_cross_encoder(tmp_path)
    reranker = E2RankReranker(model=folder, max_length=32, top_n=2, **named)
    assert len(reranker.compress_documents(documents(), QUERY)) == 2
    reranker.close()
    with pytest.raises(ValidationError, match="bm25"):
        E2RankReranker(model=folder, system="bm25")


async def test_options_of_an_e2rank_are_refused_by_others(other):
    for options in ({"passes": 2}, {"prompt_depth": 0}, {"query_weight": 0.5}):
        reranker = E2RankReranker(model=other, **options)
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: only an E2Rank has this"):
            reranker.compress_documents(documents(), QUERY)
        with pytest.raises(ValueError, match="only an E2Rank has this"):
            await reranker.acompress_documents(documents(), QUERY)


def test_copies_open_and_close_for_themselves(other):
    before = loaded_models()
    first = E2RankReranker(model=other)
    found = first.compress_documents(documents(), QUERY)
    opened = loaded_models()
    assert opened > before
    copied = first.model_copy(update={"top_n": 1})
    assert same(copied.compress_documents(documents(), QUERY), found[:1])
    assert loaded_models() == opened
    copied.close()
    assert same(first.compress_documents(documents(), QUERY), found)
    for _ in range(2):
        first.close()
        assert loaded_models() == before


async def test_a_run_is_told_what_another_system_read(tiny_resrank, tiny_rankt5, store):
    told = []
    for model in (tiny_resrank, tiny_rankt5):
        reranker = E2RankReranker(model=model, vectorstore=store)
        step = RunnableLambda(lambda docs, it=reranker: it.compress_documents(docs, QUERY))
        events = [e async for e in step.astream_events(documents(), version="v2")]
        told += [e["data"] for e in events if e["event"] == "on_custom_event"]
        reranker.close()
    assert [data.pop("prompt_tokens") > 8 for data in told] == [True, True]
    read = {"documents": 8, "documents_in_prompt": 8, "vectors_encoded": 0}
    assert told == [{**read, "vectors_reused": 8}, {**read, "vectors_reused": 0}]


# Events.


async def test_a_run_is_told_what_was_read(reranker):
    step = RunnableLambda(lambda docs: reranker.compress_documents(docs, QUERY))

    async def ranked(docs):
        return await reranker.acompress_documents(docs, QUERY)

    for runnable in (step, RunnableLambda(ranked)):
        events = [e async for e in runnable.astream_events(documents(), version="v2")]
        (told,) = [e for e in events if e["event"] == "on_custom_event"]
        assert told["name"] == "e2rank.rerank"
        data = told["data"]
        assert (data["documents"], data["vectors_reused"], data["vectors_encoded"]) == (8, 0, 8)
        assert 1 <= data["documents_in_prompt"] <= 8
        assert 8 < data["prompt_tokens"] <= 128


# Behind retrievers.


@pytest.fixture(scope="module")
def store(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    yield store
    store.close()
    embeddings.close()


def retriever_kinds(store):
    dense, lexical = store.as_retriever(search_kwargs={"k": 5}), Bm25(docs=documents(), k=5)
    llm = FakeListLLM(responses=["What do cats do?\nWhen does the ferry go?"] * 10)
    return {
        "vector store": dense,
        "bm25": lexical,
        "ensemble": EnsembleRetriever(retrievers=[dense, lexical], weights=[0.5, 0.5]),
        "multi-query": MultiQueryRetriever.from_llm(retriever=dense, llm=llm),
    }


@pytest.mark.parametrize("kind", ["vector store", "bm25", "ensemble", "multi-query"])
async def test_contextual_compression_over_every_kind_of_retriever(tiny_bert, store, kind):
    base = retriever_kinds(store)[kind]
    reranker = E2RankReranker(model=tiny_bert, top_n=3)
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=base)
    found = retriever.invoke(QUERY)
    assert same(found, reranker.compress_documents(base.invoke(QUERY), QUERY))
    assert same(await retriever.ainvoke(QUERY), found)
    assert len(found) == 3
    events = [e async for e in retriever.astream_events(QUERY, version="v2")]
    assert "e2rank.rerank" in {e["name"] for e in events if e["event"] == "on_custom_event"}
    reranker.close()


def test_as_a_tool(tiny_bert, store):
    retriever = ContextualCompressionRetriever(
        base_compressor=E2RankReranker(model=tiny_bert, top_n=1),
        base_retriever=store.as_retriever(),
    )
    tool = create_retriever_tool(retriever, "facts", "Finds facts.")
    (found,) = retriever.invoke(QUERY)
    assert tool.invoke({"query": QUERY}) == found.page_content


# Over vectors that are stored.


def test_documents_of_our_vectorstore_are_found_by_their_id(bert, store):
    reranker = counting(bert, vectorstore=store)
    found = store.similarity_search(QUERY, k=8)
    ranked = reranker.compress_documents(found, QUERY)
    assert reranker.encoder.documents == []  # the collection records this model
    assert same(ranked, counting(bert).compress_documents(found, QUERY))
    changed = [found[0].model_copy(update={"page_content": "another text"}), *found[1:]]
    reranker.compress_documents(changed, QUERY)
    assert reranker.encoder.documents == ["another text"]


class SentenceTransformers(Embeddings):
    """What langchain-huggingface does, without its pins."""

    def __init__(self, folder):
        self.model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")

    def embed_documents(self, texts):
        return self.model.encode(texts, normalize_embeddings=True).tolist()

    def embed_query(self, text):
        return self.embed_documents([text])[0]


@pytest.fixture(scope="module")
def minilm_embeddings(minilm, tmp_path_factory):
    return SentenceTransformers(minilm.save(tmp_path_factory.mktemp("minilm")))


def stock_store(client, embeddings, name="docs", texts=TEXTS, **options):
    client.create_collection(name, models.VectorParams(size=384, distance=models.Distance.COSINE))
    store = QdrantVectorStore(client, name, embeddings, **options)
    store.add_texts(texts)
    return store


@pytest.fixture
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


async def test_a_stock_collection_is_reranked_and_only_the_probe_is_encoded(
    client, minilm, minilm_embeddings
):
    stock = stock_store(client, minilm_embeddings)
    found = stock.similarity_search(QUERY, k=8)
    reranker = counting(minilm, client=client)
    before = client.count("docs").count, client.retrieve("docs", [found[0].metadata["_id"]])
    ranked = reranker.compress_documents(found, QUERY)
    assert len(reranker.encoder.documents) == 2
    assert same(ranked, counting(minilm).compress_documents(found, QUERY))
    assert ranked[0].page_content == TEXTS[0]
    # While what was compared is still there, whatever is asked afterwards and how.
    reranker.compress_documents(found, "When does the ferry cross?")
    assert same(await reranker.acompress_documents(found, QUERY), ranked)
    assert len(reranker.encoder.documents) == 2
    after = client.count("docs").count, client.retrieve("docs", [found[0].metadata["_id"]])
    assert before == after


def test_trusted_vectors_are_not_probed_and_ignored_ones_not_read(
    client, minilm, minilm_embeddings
):
    found = stock_store(client, minilm_embeddings).similarity_search(QUERY, k=8)
    trusting = counting(minilm, client=client, stored_vectors="trust")
    trusting.compress_documents(found, QUERY)
    assert trusting.encoder.documents == []
    ignoring = counting(minilm, client=client, stored_vectors="ignore")
    ignoring.compress_documents(found, QUERY)
    assert len(ignoring.encoder.documents) == 8


async def test_a_collection_of_another_model_of_384_dimensions_is_refused(client, minilm):
    stranger = EncoderEmbeddings(CountingEncoder(minilm, turn=another_model(384)))
    found = stock_store(client, stranger).similarity_search(QUERY, k=8)
    reranker = counting(minilm, client=client)
    with pytest.raises(StoredVectorMismatch, match="'docs'"):
        reranker.compress_documents(found, QUERY)
    with pytest.raises(StoredVectorMismatch, match="'docs'"):
        await reranker.acompress_documents(found, QUERY)
    ignoring = counting(minilm, client=client, stored_vectors="ignore")
    assert len(ignoring.compress_documents(found, QUERY)) == 8


def test_each_collection_is_probed_for_itself(client, minilm):
    good, bad = (
        stock_store(client, EncoderEmbeddings(encoder), name)
        for name, encoder in {
            "good": minilm,
            "bad": CountingEncoder(minilm, turn=another_model(384)),
        }.items()
    )
    reranker = counting(minilm, client=client)
    some = good.similarity_search(QUERY, k=3)
    reranker.compress_documents(some, QUERY)
    with pytest.raises(StoredVectorMismatch, match="'bad'"):
        reranker.compress_documents([*some, *bad.similarity_search(QUERY, k=3)], QUERY)


def test_documents_from_elsewhere_are_encoded(client, minilm, minilm_embeddings):
    stock = stock_store(client, minilm_embeddings)
    found = stock.similarity_search(QUERY, k=4)
    elsewhere = [
        Document(page_content="no ids at all"),
        Document(
            page_content="of a document database", metadata={"_id": "65f0c0ffee65f0c0ffee1234"}
        ),
        Document(page_content="of the web", metadata={"_id": "https://example.org"}),
        found[0].model_copy(update={"page_content": "shortened"}),
    ]
    reranker = counting(minilm, client=client, collection_name="docs", stored_vectors="trust")
    ranked = reranker.compress_documents([*found, *elsewhere], QUERY)
    assert len(ranked) == 8
    assert reranker.encoder.documents == contents(elsewhere)
    other = found[0].model_copy(update={"metadata": {**found[0].metadata, "_collection_name": "x"}})
    reranker.compress_documents([other], QUERY)
    assert reranker.encoder.documents[4:] == contents([other])


def test_other_keys_names_and_missing_collections(client, minilm):
    client.create_collection(
        "named", {"dense": models.VectorParams(size=384, distance=models.Distance.COSINE)}
    )
    stock = QdrantVectorStore(
        client,
        "named",
        EncoderEmbeddings(minilm),
        vector_name="dense",
        content_payload_key="content",
        metadata_payload_key="meta",
    )
    stock.add_texts(TEXTS)
    found = stock.similarity_search(QUERY, k=8)
    layout = QdrantStore(client, "named").layout
    reranker = counting(minilm, client=client, layout=layout, vector_name="dense")
    reranker.compress_documents(found, QUERY)
    assert len(reranker.encoder.documents) == 2
    with pytest.raises(StoreError, match="page_content"):
        counting(minilm, client=client, vector_name="dense").compress_documents(found, QUERY)
    lost = [Document(page_content="x", metadata={**found[0].metadata, "_collection_name": "lost"})]
    with pytest.raises(StoreError, match="'lost'"):
        counting(minilm, client=client).compress_documents(lost, QUERY)


def test_stored_and_fresh_vectors_score_the_same(client, minilm, minilm_embeddings):
    found = stock_store(client, minilm_embeddings).similarity_search(QUERY, k=8)
    stored = counting(minilm, client=client).compress_documents(found, QUERY)
    fresh = counting(minilm).compress_documents(found, QUERY)
    np.testing.assert_allclose(scores(stored), scores(fresh), atol=1e-5)
