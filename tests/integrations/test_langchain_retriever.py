"""E2RankRetriever over a vector store and over any retriever, and the dense retriever beside it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import VectorStoreRetriever
from langchain_e2rank import (
    E2RankEmbeddings,
    E2RankReranker,
    E2RankRetriever,
    E2RankVectorStore,
)
from langchain_qdrant import QdrantVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError
from qdrant_client import QdrantClient

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker, load_reranker
from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from e2rank_rag.types import Document as CoreDocument
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
def embeddings(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    yield embeddings
    embeddings.close()


@pytest.fixture(scope="module")
def store(embeddings):
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    yield store
    store.close()


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    reranker = E2RankReranker(model=tiny_bert)
    yield reranker
    reranker.close()


class TestDense(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _parts(self, store):
        self.store = store

    @property
    def retriever_constructor(self):
        # A vector store makes its retriever, which takes k among its search_kwargs.
        return lambda k=4: self.store.as_retriever(search_kwargs={"k": k})

    @property
    def retriever_query_example(self):
        return QUERY


class TestOverVectorStore(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _parts(self, store):
        self.store = store

    @property
    def retriever_constructor(self):
        return E2RankRetriever

    @property
    def retriever_constructor_params(self):
        return {"vectorstore": self.store}

    @property
    def retriever_query_example(self):
        return QUERY


class TestOverBaseRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _parts(self, reranker):
        self.reranker = reranker

    @property
    def retriever_constructor(self):
        return E2RankRetriever

    @property
    def retriever_constructor_params(self):
        return {"base_retriever": Bm25(docs=documents(), k=6), "reranker": self.reranker}

    @property
    def retriever_query_example(self):
        return QUERY


def kinds(store, reranker):
    return {
        "vector store": E2RankRetriever(vectorstore=store, k=3),
        "base retriever": E2RankRetriever(
            base_retriever=Bm25(docs=documents(), k=6), reranker=reranker, k=3
        ),
    }


@pytest.fixture(params=["vector store", "base retriever"])
def retriever(request, store, reranker):
    return kinds(store, reranker)[request.param]


def test_the_ranking_is_the_pipelines(store, bert):
    pipeline = SearchPipeline(bert, store.store, ListwiseReranker(bert))
    for options in ({}, {"expand": True}, {"retrieve_k": 3}, {"filter": {"kind": "traffic"}}):
        expected = pipeline.search(QUERY, top_k=2, **options)
        found = E2RankRetriever(vectorstore=store, k=2, **options).invoke(QUERY)
        assert [d.id for d in found] == [hit.document.id for hit in expected]
        assert scores(found) == pytest.approx([hit.score for hit in expected], abs=1e-5)
        again = E2RankRetriever(vectorstore=store).invoke(QUERY, k=2, **options)
        assert same(again, found)
    assert found[0].metadata["kind"] == "traffic"


@pytest.mark.parametrize("options", [{}, {"expand": True}])
async def test_words_add_to_the_scores_where_the_recipe_says_so(store, worded_bert, options):
    query = "cats, dogs, ferry, bridge, bread"  # any four documents hold some of these
    options = {"retrieve_k": 4, **options}
    reranker = E2RankReranker(model=worded_bert)
    retriever = E2RankRetriever(vectorstore=store, reranker=reranker, k=4, **options)
    with Encoder.from_pretrained(worded_bert) as encoder:
        kinds = (ListwiseReranker(encoder), ListwiseReranker(encoder, evidence=False))
        hits, cosines = (
            SearchPipeline(encoder, store.store, kind).search(query, top_k=4, **options)
            for kind in kinds
        )
    for found in (retriever.invoke(query), await retriever.ainvoke(query)):
        assert [d.id for d in found] == [hit.document.id for hit in hits]
        assert scores(found) == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert [hit.score for hit in hits] != pytest.approx([hit.score for hit in cosines], abs=1e-3)
    reranker.close()


async def test_a_rankt5_reranks_what_another_model_retrieves(store, bert, tiny_rankt5):
    reranker = E2RankReranker(model=tiny_rankt5)
    retriever = E2RankRetriever(vectorstore=store, reranker=reranker, k=4, retrieve_k=6)
    with load_reranker(tiny_rankt5) as core:
        pipeline = SearchPipeline(bert, store.store, core)
        expected = pipeline.search(QUERY, top_k=4, retrieve_k=6)
    found = retriever.invoke(QUERY)
    assert [d.id for d in found] == [hit.document.id for hit in expected]
    assert scores(found) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert same(await retriever.ainvoke(QUERY), found)
    base = store.as_retriever(search_kwargs={"k": 6})
    assert same(E2RankRetriever(base_retriever=base, reranker=reranker, k=4).invoke(QUERY), found)
    with pytest.raises(ValueError, match="expand searches again with the reranker's own vector"):
        retriever.invoke(QUERY, expand=True)
    stranger = E2RankVectorStore(EncoderEmbeddings(bert), client=store.store.client)
    with pytest.raises(ValueError, match=r"no vectors to search it with: give base_retriever="):
        E2RankRetriever(vectorstore=stranger, reranker=reranker).invoke(QUERY)
    retriever.close()


async def test_a_resrank_retrieves_and_reranks(tiny_resrank):
    embeddings = E2RankEmbeddings(model=tiny_resrank)
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    own = E2RankRetriever(vectorstore=store, k=4)
    named = E2RankRetriever(vectorstore=store, reranker=E2RankReranker(model=tiny_resrank), k=4)
    with load_reranker(tiny_resrank) as core:
        expected = SearchPipeline(core.encoder, store.store, core).search(QUERY, top_k=4)
    found = own.invoke(QUERY)
    assert [d.id for d in found] == [hit.document.id for hit in expected]
    assert scores(found) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert same(named.invoke(QUERY), found)
    assert same(await own.ainvoke(QUERY), found)
    for component in (own, named, store, embeddings):
        component.close()


def test_k_counts_not_the_rerankers_top_n(store, tiny_bert):
    one = E2RankReranker(model=tiny_bert, top_n=1)
    base = store.as_retriever(search_kwargs={"k": 8})
    assert len(E2RankRetriever(base_retriever=base, reranker=one, k=5).invoke(QUERY)) == 5
    assert len(E2RankRetriever(vectorstore=store, reranker=one, k=5).invoke(QUERY)) == 5
    one.close()


async def test_async_gives_the_same_with_the_same_arguments(store, retriever):
    assert same(await retriever.ainvoke(QUERY), retriever.invoke(QUERY))
    assert same(await retriever.ainvoke(QUERY, k=1), retriever.invoke(QUERY, k=1))
    assert len(await retriever.ainvoke(QUERY, k=1)) == 1
    if retriever.vectorstore is not None:
        options = {"k": 2, "retrieve_k": 4, "expand": True, "filter": {"kind": "traffic"}}
        found = retriever.invoke(QUERY, **options)
        assert sorted(d.id for d in found) == ["bridge", "ferry"]
        assert same(await retriever.ainvoke(QUERY, **options), found)


def test_over_the_store_and_over_its_dense_retriever_the_ranking_is_one(store, reranker):
    base = store.as_retriever(search_kwargs={"k": 8})
    wrapped = E2RankRetriever(base_retriever=base, reranker=reranker, k=8).invoke(QUERY)
    assert same(E2RankRetriever(vectorstore=store, k=8).invoke(QUERY), wrapped)


async def test_the_event_loop_ticks(embeddings, reranker):
    store = E2RankVectorStore.from_texts(
        [f"{text} {number}" for number in range(40) for text in TEXTS], embeddings
    )
    fused = E2RankRetriever(vectorstore=store)
    assert await ticks_during(fused.ainvoke(QUERY)) >= 1
    base = store.as_retriever(search_kwargs={"k": 300})
    wrapped = E2RankRetriever(base_retriever=base, reranker=reranker)
    assert await ticks_during(wrapped.ainvoke(QUERY)) >= 5
    store.close()


async def test_threads_and_tasks_give_the_answers_of_one_thread(retriever):
    queries = [" ".join(TEXTS[: 1 + number]) for number in range(8)]
    expected = [retriever.invoke(query) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(retriever.invoke, queries))
    tasks = await asyncio.gather(*(retriever.ainvoke(query) for query in queries))
    for one, two, other in zip(found, tasks, expected, strict=True):
        assert same(one, other)
        assert same(two, other)
    assert all(same(a, b) for a, b in zip(retriever.batch(queries), expected, strict=True))


async def test_events_are_seen(store, reranker):
    names = {}
    for kind, retriever in kinds(store, reranker).items():
        events = [e async for e in retriever.astream_events(QUERY, version="v2")]
        names[kind] = [e["name"] for e in events if e["event"] == "on_custom_event"]
    assert names == {
        "vector store": ["e2rank.search"],
        "base retriever": ["e2rank.retrieve", "e2rank.rerank"],
    }


def test_one_source_is_needed(store, bert):
    with pytest.raises(ValidationError, match="one of the two"):
        E2RankRetriever()
    with pytest.raises(ValidationError, match="one of the two"):
        E2RankRetriever(vectorstore=store, base_retriever=store.as_retriever())
    stranger = E2RankVectorStore(EncoderEmbeddings(bert))
    with pytest.raises(ValidationError, match="EncoderEmbeddings"):
        E2RankRetriever(vectorstore=stranger)
    stranger.close()


def test_wrong_arguments_are_refused(store, retriever):
    with pytest.raises(TypeError, match="topk"):
        retriever.invoke(QUERY, topk=3)
    with pytest.raises(ValueError, match="k must be > 0"):
        retriever.invoke(QUERY, k=0)
    with pytest.raises(ValidationError):
        E2RankRetriever(vectorstore=store, top_k=3)
    with pytest.raises(ValidationError, match="for a vectorstore"):
        E2RankRetriever(base_retriever=store.as_retriever(), filter={"kind": "ice"})
    with pytest.raises(ValueError, match="for a vectorstore"):
        E2RankRetriever(base_retriever=store.as_retriever()).invoke(QUERY, expand=True)


def test_the_configuration_makes_the_same_retriever_again(store, tiny_bert):
    retriever = E2RankRetriever(
        vectorstore=store,
        reranker=E2RankReranker(model=tiny_bert, prompt_depth=3),
        k=2,
        expand=True,
    )
    settings = retriever.model_dump()
    assert settings["reranker"]["prompt_depth"] == 3
    again = E2RankRetriever(**settings, vectorstore=store)
    assert again.model_dump() == settings
    assert same(again.invoke(QUERY), retriever.invoke(QUERY))
    retriever.close()
    again.close()


def test_an_empty_store_gives_nothing(embeddings):
    store = E2RankVectorStore(embeddings)
    retriever = E2RankRetriever(vectorstore=store, k=2)
    assert retriever.invoke(QUERY) == []
    store.add_texts(TEXTS)
    assert len(retriever.invoke(QUERY)) == 2
    store.close()


@pytest.mark.parametrize("expand", [False, True])
def test_the_cosine_of_the_search_is_kept_beside_the_new_score(store, expand):
    plain = {d.id: score for d, score in store.similarity_search_with_score(QUERY, k=len(IDS))}
    found = E2RankRetriever(vectorstore=store, k=len(IDS), expand=expand).invoke(QUERY)
    kept = {d.id: d.metadata["retrieval_score"] for d in found}
    assert kept == pytest.approx(plain, abs=1e-6)


def test_closing_a_copy_leaves_the_model_of_the_first_open(tiny_xlmr):
    first = E2RankEmbeddings(model=tiny_xlmr)
    vector = first.embed_query(QUERY)
    copied = first.model_copy(update={"max_length": 16})
    assert copied.encoder is not first.encoder
    copied.close()
    assert first.embed_query(QUERY) == vector
    first.close()


def test_it_goes_on_after_the_model_was_closed(tiny_xlmr):
    embeddings = E2RankEmbeddings(model=tiny_xlmr)
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    retriever = E2RankRetriever(vectorstore=store, k=3)
    first = retriever.invoke(QUERY)
    embeddings.close()
    assert same(retriever.invoke(QUERY), first)
    embeddings.close()
    store.close()


def test_langsmith_is_told_store_and_model(store):
    parameters = E2RankRetriever(vectorstore=store)._get_ls_params()
    assert parameters["ls_retriever_name"] == "e2rank"
    assert parameters["ls_vector_store_provider"] == "E2RankVectorStore"
    assert parameters["ls_embedding_provider"] == "E2RankEmbeddings"


def test_in_a_chain_and_as_a_tool(retriever):
    chain = (
        {"context": retriever, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("{context}\n{question}")
        | FakeListChatModel(responses=["Cats."])
        | StrOutputParser()
    )
    assert chain.invoke(QUERY) == "Cats."
    tool = create_retriever_tool(retriever, "facts", "Finds facts.")
    assert tool.invoke({"query": QUERY}) == "\n\n".join(contents(retriever.invoke(QUERY)))


# Over a collection that stock langchain-qdrant wrote.


def stock_client(encoder):
    client = QdrantClient(":memory:")
    QdrantStore(client, "docs", layout=LANGCHAIN_LAYOUT).prepare(encoder.dim)
    QdrantVectorStore(client, "docs", EncoderEmbeddings(encoder)).add_texts(TEXTS)
    return client


def opened(client, encoder):
    embeddings = E2RankEmbeddings()
    embeddings._opened.put(embeddings.stated(), CountingEncoder(encoder))
    return E2RankVectorStore(
        embeddings, client=client, collection_name="docs", layout=LANGCHAIN_LAYOUT
    )


async def test_a_stock_collection_is_searched_and_only_the_probe_is_encoded(minilm):
    client = stock_client(minilm)
    store = opened(client, minilm)
    retriever = E2RankRetriever(vectorstore=store, k=2)
    found = retriever.invoke(QUERY)
    assert found[0].page_content == TEXTS[0]
    assert same(await retriever.ainvoke(QUERY), found)
    assert len(store.embeddings.encoder.documents) == 2
    assert store.store.count() == len(IDS)
    client.close()


async def test_a_collection_of_another_model_of_384_dimensions_is_refused(minilm):
    client = stock_client(CountingEncoder(minilm, turn=another_model(384)))
    store = opened(client, minilm)
    retriever = E2RankRetriever(vectorstore=store)
    with pytest.raises(StoredVectorMismatch, match="'docs'"):
        retriever.invoke(QUERY)
    with pytest.raises(StoredVectorMismatch, match="'docs'"):
        await retriever.ainvoke(QUERY)
    with pytest.raises(StoredVectorMismatch, match="'docs'"):
        store.similarity_search(QUERY)
    client.close()


def test_stock_embeddings_take_a_reranker_of_the_same_model(minilm):
    client = stock_client(minilm)
    store = E2RankVectorStore(
        EncoderEmbeddings(minilm), client=client, collection_name="docs", layout=LANGCHAIN_LAYOUT
    )
    reranker = E2RankReranker(model="minilm")
    found = E2RankRetriever(vectorstore=store, reranker=reranker, k=2).invoke(QUERY)
    assert found[0].page_content == TEXTS[0]
    assert isinstance(store.as_retriever(), VectorStoreRetriever)
    reranker.close()
    client.close()


async def test_a_k_above_retrieve_k_retrieves_k(embeddings):
    texts = [f"{text} {number}" for number in range(15) for text in TEXTS]
    store = E2RankVectorStore.from_texts(texts, embeddings)
    assert len(E2RankRetriever(vectorstore=store, k=110).invoke(QUERY)) == 110
    retriever = E2RankRetriever(vectorstore=store, retrieve_k=5)
    assert len(retriever.invoke(QUERY)) == 10
    assert len(await retriever.ainvoke(QUERY, k=110)) == 110
    retriever.k = 111
    assert len(retriever.invoke(QUERY)) == 111
    with pytest.raises(ValueError, match=r"retrieve_k must be at least top_k \(20\), got 10"):
        retriever.invoke(QUERY, k=20, retrieve_k=10)
    store.close()


async def test_without_scores_a_multi_query_retriever_shows_each_document_once(store, reranker):
    from langchain_classic.retrievers import MultiQueryRetriever

    asked = FakeListChatModel(responses=[f"{QUERY}\nDo cats sleep?\nWhat barks?"])
    plain = {document.id: document for document in documents()}
    base = Bm25(docs=documents(), k=6)
    for source in ({"vectorstore": store}, {"base_retriever": base, "reranker": reranker}):
        retriever = E2RankRetriever(**source, k=4, score_key=None)
        found = retriever.invoke(QUERY)
        assert [plain[d.id] for d in found] == found
        assert contents(await retriever.ainvoke(QUERY)) == contents(found)
        assert contents(retriever.model_copy(update={"score_key": "s"}).invoke(QUERY)) == contents(
            found
        )
        several = MultiQueryRetriever.from_llm(retriever, asked)
        for merged in (several.invoke(QUERY), await several.ainvoke(QUERY)):
            assert len(merged) > 4
            assert len({d.id for d in merged}) == len(merged)


@pytest.mark.parametrize("recorded", [False, True])
async def test_an_open_retriever_refuses_a_collection_that_another_model_wrote_anew(
    minilm, recorded
):
    client = stock_client(minilm)
    store = opened(client, minilm)
    retriever = E2RankRetriever(vectorstore=store, k=2)
    found = retriever.invoke(QUERY)
    client.delete_collection("docs")
    assert retriever.invoke(QUERY) == store.similarity_search(QUERY) == []
    other = CountingEncoder(minilm, turn=another_model(384))
    fingerprint = "turned" if recorded else None
    theirs = QdrantStore(client, "docs", layout=LANGCHAIN_LAYOUT)
    theirs.prepare(384, fingerprint=fingerprint)
    points = [str(n) for n in range(len(TEXTS))]
    core = [CoreDocument(id, text) for id, text in zip(points, TEXTS, strict=True)]
    theirs.upsert(core, other.encode_documents(TEXTS))
    with pytest.raises(StoredVectorMismatch):
        retriever.invoke(QUERY)
    with pytest.raises(StoredVectorMismatch):
        await retriever.ainvoke(QUERY)
    for search in (lambda: store.similarity_search(QUERY), lambda: store.add_texts(["new"])):
        with pytest.raises(StoredVectorMismatch):
            search()
    assert theirs.count() == len(TEXTS)
    theirs.delete(points)
    client.delete_collection("docs")
    store.add_texts(TEXTS)
    assert contents(retriever.invoke(QUERY)) == contents(found)
    client.close()
