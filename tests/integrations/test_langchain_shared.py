"""A changed field of a LangChain component is used, whichever it is and however it is changed."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_e2rank import (
    E2RankEmbeddings,
    E2RankReranker,
    E2RankRetriever,
    E2RankVectorStore,
)
from langchain_qdrant import QdrantVectorStore
from pydantic import ConfigDict, PrivateAttr, ValidationError
from qdrant_client import QdrantClient

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.evidence import Evidence
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.prompts import Task
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
from tests.integrations.langchain_parts import (
    QUERY,
    TEXTS,
    Bm25,
    EncoderEmbeddings,
    closing,
    documents,
)


def tenant(name, embeddings, **options):
    """A store whose documents say whose they are, in a collection of the same name."""
    texts = [f"{name}: {text}" for text in TEXTS]
    ids = [f"{name}{number}" for number in range(len(texts))]
    return E2RankVectorStore.from_texts(texts, embeddings, ids=ids, **options)


def stock_client(encoder, name):
    """A collection that langchain-qdrant wrote, in a client of its own."""
    client = QdrantClient(":memory:")
    QdrantStore(client, "docs", layout=LANGCHAIN_LAYOUT).prepare(encoder.dim)
    texts = [f"{name}: {text}" for text in TEXTS]
    QdrantVectorStore(client, "docs", EncoderEmbeddings(encoder)).add_texts(texts)
    return client


class ToldOf(BaseCallbackHandler):
    """Keeps the data of custom events of one name."""

    def __init__(self, name):
        self.name, self.data = name, []

    def on_custom_event(self, name, data, **_):
        if name == self.name:
            self.data.append(data)


# What a component gives, or the kind of error: the same for two components that are the same.


def outcome(call):
    try:
        return call()
    except Exception as error:
        return [type(error).__name__]


def near(found, expected):
    """The same documents, numbers as near as two computations come."""
    if not all(isinstance(item, Document) for item in (*found, *expected)):
        return found == pytest.approx(expected, abs=1e-5)
    return [d.page_content for d in found] == [d.page_content for d in expected] and all(
        flat(one.metadata) == pytest.approx(flat(other.metadata), abs=1e-5, nan_ok=True)
        for one, other in zip(found, expected, strict=True)
    )


def flat(value, name=""):
    """Nested dicts and lists as one dict, the values by their paths."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: v for key, each in items for path, v in flat(each, f"{name}/{key}").items()}


def vector_of(embeddings):
    return outcome(lambda: embeddings.embed_query(QUERY) + embeddings.embed_documents(TEXTS)[1])


def order_of(reranker):
    return outcome(lambda: reranker.compress_documents(documents(), QUERY))


def found_by(retriever):
    return outcome(lambda: retriever.invoke(QUERY))


# What changes the answer with these values; the other fields say where a model or a vector is.
CHANGES = {
    "model",
    "dtype",
    "max_length",
    "truncate_dim",
    "prompts",
    "system",
    "top_n",
    "score_key",
}
CHANGES |= {"prompt_depth", "query_weight", "evidence", "passes", "reranker", "k", "filter"}
CHANGES |= {"hybrid", "explain"}
MODEL_FIELDS = {
    "device": "cpu",
    "dtype": "bfloat16",
    "threads": 3,
    "max_length": 8,
    "truncate_dim": 16,
    "pooling": "mean",
    "prompts": "qwen3-embedding",
    "attn_implementation": "eager",
    "revision": "main",
    "local_files_only": True,
    "task": Task(query="find the animal"),
}
RERANKER_FIELDS = {
    "system": "rankt5",
    "top_n": None,
    "score_key": "score",
    "prompt_depth": 1,
    "query_weight": 1.0,
    "evidence": Evidence(words=3.0),
    "passes": 2,
    "explain": True,
    "stored_vectors": "ignore",
    "collection_name": "other",
    "layout": Layout(),
    "vector_name": "dense",
    "async_client": None,
    "client": None,
    "vectorstore": None,
}
RETRIEVER_FIELDS = {
    "k": 3,
    "retrieve_k": 1,
    "filter": {"kind": "traffic"},
    "expand": True,
    "hybrid": "dbsf",
    "explain": True,
    "score_key": "score",
    "base_retriever": None,
    "name": "another",
    "tags": ["a"],
    "metadata": {"a": 1},
}


def check_change(make, given, name, value, measured):
    """By assignment and by copy, before and after use, as by construction; nothing else changes."""
    with closing(make(**{**given, name: value})) as anew:
        expected = measured(anew)
    for used in (False, True):
        with closing(make(**given)) as first:
            before = measured(first)
            if not used:
                first.close()
            with closing(first.model_copy(update={name: value})) as copied:
                assert near(measured(copied), expected), (name, used, "copy")
            assert near(measured(first), before), (name, used, "the first after its copy")
            setattr(first, name, value)
            assert near(measured(first), expected), (name, used, "assignment")
            assert name not in CHANGES or not near(before, expected), f"{name}={value} is no test"


@pytest.mark.parametrize("name", [*E2RankEmbeddings.model_fields])
def test_every_changed_field_of_the_embeddings_is_used(name, tiny_qwen3, tiny_bert, tiny_xlmr):
    values = {**MODEL_FIELDS, "model": tiny_xlmr}
    model = tiny_qwen3 if name == "task" else tiny_bert
    check_change(E2RankEmbeddings, {"model": model}, name, values[name], vector_of)


@pytest.mark.parametrize("name", [*E2RankReranker.model_fields])
def test_every_changed_field_of_the_reranker_is_used(name, tiny_bert, tiny_xlmr, bert):
    values = {**MODEL_FIELDS, "model": tiny_xlmr, **RERANKER_FIELDS}
    check_change(E2RankReranker, {"model": tiny_bert, "top_n": 4}, name, values[name], order_of)


@pytest.mark.parametrize("name", [*E2RankRetriever.model_fields])
def test_every_changed_field_of_the_retriever_is_used(name, tiny_bert, tiny_rankt5):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    other = tenant("b", embeddings)
    values = {
        **RETRIEVER_FIELDS,
        "vectorstore": other,
        "reranker": E2RankReranker(model=tiny_rankt5),
    }
    check_change(E2RankRetriever, {"vectorstore": store, "k": 1}, name, values[name], found_by)
    for component in (values["reranker"], store, other, embeddings):
        component.close()


async def test_a_copy_or_a_changed_field_is_used_not_remembered_from_before(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    a, b = tenant("a", embeddings), tenant("b", embeddings)
    first = E2RankRetriever(vectorstore=a, k=8)
    assert all(d.id.startswith("a") for d in first.invoke(QUERY))
    copied = first.model_copy(update={"vectorstore": b})
    shallow = copy.copy(first)
    shallow.vectorstore = b
    for retriever in (copied, shallow):
        for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY)):
            assert all(d.id.startswith("b") for d in found)
    assert all(d.id.startswith("a") for d in await first.ainvoke(QUERY))
    first.vectorstore = b
    assert all(d.id.startswith("b") for d in await first.ainvoke(QUERY))
    assert all(d.id.startswith("b") for d in first.with_config(tags=["x"]).invoke(QUERY))
    for component in (first, copied, shallow, a, b, embeddings):
        component.close()


async def test_a_configured_field_is_used(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    a, b = tenant("a", embeddings), tenant("b", embeddings)
    fields = {name: ConfigurableField(id=name) for name in ("vectorstore", "k")}
    retriever = E2RankRetriever(vectorstore=a).configurable_fields(**fields)
    assert retriever.invoke(QUERY)[0].id.startswith("a")
    other = retriever.with_config(configurable={"vectorstore": b, "k": 2})
    for found in (other.invoke(QUERY), await other.ainvoke(QUERY)):
        assert [d.id[0] for d in found] == ["b", "b"]
    assert len(await retriever.bind(k=1).ainvoke(QUERY)) == 1
    for component in (a, b, embeddings):
        component.close()


def test_the_model_of_the_embeddings_may_change_under_a_retriever(tiny_bert, tiny_xlmr):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    retriever = E2RankRetriever(vectorstore=store)
    retriever.invoke(QUERY)
    embeddings.model = tiny_xlmr
    with pytest.raises(StoredVectorMismatch, match="another model"):
        retriever.invoke(QUERY)
    with pytest.raises(StoredVectorMismatch, match="another model"):
        store.similarity_search(QUERY)
    with pytest.raises(StoredVectorMismatch, match="use the model that wrote it"):
        store.add_texts(["of another model"])
    retriever.close()
    store.close()
    embeddings.close()


def test_stores_are_told_apart_by_client_and_not_by_name(bert, tiny_bert):
    a, b = (stock_client(bert, name) for name in "ab")
    stores = {
        client: QdrantVectorStore(client, "docs", EncoderEmbeddings(bert)) for client in (a, b)
    }
    reranker = E2RankReranker(model=tiny_bert, client=a)

    def reused(reranker):
        """How many stored vectors are used for the documents of a, and for those of b."""
        told = ToldOf("e2rank.rerank")
        step = RunnableLambda(lambda found: reranker.compress_documents(found, QUERY))
        for stock in stores.values():
            step.invoke(stock.similarity_search(QUERY, k=8), {"callbacks": [told]})
        return [data["vectors_reused"] for data in told.data]

    assert reused(reranker) == [8, 0]
    reranker.client = b
    assert reused(reranker) == [0, 8]
    copied = reranker.model_copy(update={"client": a})
    assert reused(copied) == [8, 0]
    assert reused(reranker) == [0, 8]
    copied.close()
    reranker.close()
    a.close()
    b.close()


def test_a_changed_field_is_checked_as_at_construction(tiny_bert):
    reranker = E2RankReranker(model=tiny_bert)
    for name, value in (("top_n", 0), ("prompt_depth", -1), ("query_weight", 1.5), ("passes", 0)):
        with pytest.raises(ValidationError):
            setattr(reranker, name, value)
        with pytest.raises(ValidationError):
            reranker.model_copy(update={name: value})
    with pytest.raises(ValidationError):
        reranker.model_copy(update={"topn": 3})
    assert reranker == E2RankReranker(model=tiny_bert)
    retriever = E2RankRetriever(base_retriever=Bm25(docs=documents()), reranker=reranker)
    for name, value in (("k", 0), ("retrieve_k", 0), ("expand", True), ("base_retriever", None)):
        with pytest.raises(ValidationError):
            setattr(retriever, name, value)
    assert len(retriever.invoke(QUERY)) == 4
    retriever.close()


def test_closing_a_copy_leaves_the_first_open_and_the_last_close_frees_the_model(tiny_xlmr):
    before = loaded_models()
    make = partial(E2RankEmbeddings, model=tiny_xlmr)
    first = make()
    vector = first.embed_query(QUERY)
    copies = [copy.copy(first), copy.deepcopy(first), first.model_copy(update={"max_length": 16})]
    for copied in copies:
        copied.embed_query(QUERY)
        copied.close()
        assert loaded_models() == before + 1
    assert first.embed_query(QUERY) == vector
    first.max_length = 16
    first.embed_query(QUERY)
    first.close()
    assert loaded_models() == before


def test_threads_go_on_while_another_assigns(tiny_bert, tiny_rankt5):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    retriever = E2RankRetriever(vectorstore=store, reranker=E2RankReranker(model=tiny_rankt5))
    before = loaded_models()
    done = threading.Event()

    def search():
        answers = 0
        while not done.is_set() or not answers:
            answers += len(retriever.invoke(QUERY)) == 8
        return answers

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search) for _ in range(3)]
        for turn in range(12):
            retriever.reranker.model = (tiny_bert, tiny_rankt5)[turn % 2]
            retriever.reranker = E2RankReranker(model=retriever.reranker.model)
            time.sleep(0.05)
        done.set()
        assert all(search.result() for search in searches)
    retriever.close()
    assert loaded_models() == before
    store.close()
    embeddings.close()


@pytest.mark.parametrize("source", ["vectorstore", "base_retriever"])
def test_what_is_made_anew_for_each_call_frees_its_model(source, tiny_resrank, minilm):
    embeddings = E2RankEmbeddings(model=tiny_resrank)
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    made_of = {"vectorstore": store, "base_retriever": Bm25(docs=documents())}[source]
    retriever = E2RankRetriever(**{source: made_of})
    before = loaded_models()
    configurable = retriever.configurable_fields(k=ConfigurableField(id="k"))
    for k in (1, 2):
        assert len(configurable.with_config(configurable={"k": k}).invoke(QUERY)) == k
    if source == "base_retriever":  # one reranker for all, as if it had been given
        assert retriever.reranker._opened.known is not None
    retriever.close()
    assert loaded_models() == before
    store.close()
    embeddings.close()


def test_a_subclass_keeps_its_own_constructor_fields_and_state(tiny_bert):
    class Counting(E2RankEmbeddings):
        model_config = ConfigDict(extra="allow")
        _queries: list[str] = PrivateAttr(default_factory=list)

        def __init__(self, folder, **options):
            super().__init__(model=folder, **options)

        def embed_query(self, text):
            self._queries.append(text)
            return super().embed_query(text)

    embeddings = Counting(tiny_bert, note="mine")
    embeddings.embed_query(QUERY)
    embeddings.max_length = 16
    copied = embeddings.model_copy(update={"max_length": 8})
    assert (embeddings.max_length, copied.max_length) == (16, 8)
    assert (embeddings.note, copied.note) == ("mine", "mine")
    assert copied._queries == [QUERY]
    with pytest.raises(ValidationError):
        embeddings.model_copy(update={"pooling": "none"})
    embeddings.close()
    copied.close()


def test_a_store_and_its_copy_are_closed_apart(tiny_bert, tmp_path):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    for location in (":memory:", tmp_path / "index"):
        first = E2RankVectorStore.from_documents(documents(), embeddings, location=location)
        for again in (copy.copy, copy.deepcopy):
            copied = again(first)
            assert len(copied.similarity_search(QUERY, k=8)) == 8
            copied.close()
        last = copy.copy(first)
        first.close()
        assert len(last.similarity_search(QUERY, k=8)) == 8
        last.close()
        with pytest.raises(StoreError, match="closed"):
            last.similarity_search(QUERY)
    embeddings.close()
