"""Copies, deep copies and pickles of every component, before and after use.

Each is a component of its own with the same settings: the same answers, a model that it opens at
first use, and closing one leaves the other open.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from haystack import Document as HaystackDocument
from haystack import Pipeline
from haystack.tools import ComponentTool
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import (
    E2RankRetriever as HaystackRetriever,
)
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from langchain_core.documents import Document as LangChainDocument
from langchain_e2rank import (
    E2RankEmbeddings,
    E2RankReranker,
    E2RankRetriever,
    E2RankVectorStore,
)

from e2rank_rag.errors import StoreError
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import load_reranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document

QUERY = "which animals purr?"
TEXTS = ["cats purr and sleep", "dogs bark and dig", "the ferry leaves at six", "bread rises"]
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda component: pickle.loads(pickle.dumps(component)),
}


def core_store(encoder, location):
    store = QdrantStore.open(location, "docs")
    store.prepare(encoder.dim, fingerprint=encoder.fingerprint, model=encoder.name)
    documents = [Document(f"d{place}", text) for place, text in enumerate(TEXTS)]
    store.upsert(documents, encoder.encode_documents(TEXTS))
    return store


def haystack_store(encoder, location):
    where = {"location": location} if location == ":memory:" else {"path": str(location)}
    store = QdrantDocumentStore(
        **where, index="docs", embedding_dim=encoder.dim, progress_bar=False
    )
    vectors = encoder.encode_documents(TEXTS).tolist()
    store.write_documents(
        [
            HaystackDocument(id=f"d{place}", content=text, embedding=vector)
            for place, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
        ]
    )
    return store


def haystack_documents():
    return [HaystackDocument(id=f"d{place}", content=text) for place, text in enumerate(TEXTS)]


def langchain_documents():
    return [LangChainDocument(id=f"d{n}", page_content=text) for n, text in enumerate(TEXTS)]


@dataclass
class Case:
    """How a component is made, what it is asked, and what is special about it.

    memory: its documents are in this process only. reopens: it goes on after it was closed.
    """

    make: Callable[[], Any]
    ask: Callable[[Any], list[tuple[str, float]]]
    memory: bool = False
    reopens: bool = True


def by_haystack(answer):
    return [(document.id, document.score) for document in answer["documents"]]


def by_langchain(found):
    return [(document.id, document.metadata["relevance_score"]) for document in found]


def numbers(vectors):
    return [("number", float(number)) for number in np.ravel(vectors)]


def embedded(component):
    answer = component.run(haystack_documents())
    return numbers([document.embedding for document in answer["documents"]])


def ranked(component):
    return by_haystack(component.run(query=QUERY, documents=haystack_documents()))


def run(component):
    return by_haystack(component.run(query=QUERY))


def compressed(component):
    return by_langchain(component.compress_documents(langchain_documents(), QUERY))


def invoked(component):
    return by_langchain(component.invoke(QUERY))


def searched(component):
    found = component.similarity_search_with_score(QUERY, k=4)
    return [(document.id, score) for document, score in found]


class Parts:
    """The parts of which the components are made, and what has to be closed in the end."""

    def __init__(self, encoder, models, folder):
        self.encoder = encoder
        self.models = models
        self.folder = folder
        self.opened = []

    def place(self, name):
        return ":memory:" if "memory" in name else self.folder

    def vector_store(self, name):
        embeddings = E2RankEmbeddings(model=self.models["e2rank"])
        store = E2RankVectorStore.from_documents(
            langchain_documents(), embeddings, location=self.place(name)
        )
        self.opened += [embeddings, store]
        return store

    def document_store(self, name):
        if "our" not in name:
            return haystack_store(self.encoder, self.place(name))
        store = core_store(self.encoder, self.place(name))
        self.opened.append(store)
        return store


def haystack_case(name, parts):
    model = parts.models[name.partition(" of ")[2] or "e2rank"]
    if name == "text embedder":
        make = partial(E2RankTextEmbedder, model=model)
        return Case(make, lambda component: numbers(component.run(QUERY)["embedding"]))
    if name == "document embedder":
        return Case(partial(E2RankDocumentEmbedder, model=model), embedded)
    if "over" not in name:
        return Case(partial(E2RankRanker, model=model), ranked)
    store = parts.document_store(name)
    if name.startswith("ranker"):
        return Case(partial(E2RankRanker, model=model, document_store=store), ranked)
    make = partial(HaystackRetriever, document_store=store, model=model)
    return Case(make, run, memory="memory" in name)


def langchain_case(name, parts):
    model = parts.models[name.partition(" of ")[2] or "e2rank"]
    memory = "memory" in name
    if name == "embeddings":
        make = partial(E2RankEmbeddings, model=model)
        return Case(make, lambda component: numbers(component.embed_documents(TEXTS)))
    if name.startswith("reranker"):
        return Case(partial(E2RankReranker, model=model, top_n=None), compressed)
    if name.startswith("vector store"):
        return Case(partial(parts.vector_store, name), searched, memory=memory, reopens=False)
    store = parts.vector_store(name)
    if "a retriever" not in name:
        return Case(partial(E2RankRetriever, vectorstore=store), invoked, memory=memory)
    source = {"base_retriever": store.as_retriever(), "reranker": E2RankReranker(model=model)}
    return Case(partial(E2RankRetriever, **source), invoked)


COMPONENTS = [
    "haystack: text embedder",
    "haystack: document embedder",
    "haystack: ranker of e2rank",
    "haystack: ranker of resrank",
    "haystack: ranker of rankt5",
    "haystack: ranker over a folder",
    "haystack: retriever over a folder",
    "haystack: retriever over memory",
    "haystack: retriever over our folder",
    "haystack: retriever over our memory",
    "langchain: embeddings",
    "langchain: reranker of e2rank",
    "langchain: reranker of resrank",
    "langchain: reranker of rankt5",
    "langchain: retriever over a retriever",
    "langchain: retriever over a folder",
    "langchain: retriever over memory",
    "langchain: vector store in a folder",
    "langchain: vector store in memory",
]


@pytest.fixture(scope="module")
def models(bert, tiny_bert, tiny_resrank, tiny_rankt5):
    """Folders by system; each stays in memory, so that no component has to load it."""
    folders = {"e2rank": tiny_bert, "resrank": tiny_resrank, "rankt5": tiny_rankt5}
    others = [load_reranker(folders[system]) for system in ("resrank", "rankt5")]
    yield folders
    for reranker in others:
        reranker.close()


@pytest.fixture
def parts(bert, models, tmp_path):
    parts = Parts(bert, models, tmp_path / "index")
    yield parts
    for opened in reversed(parts.opened):
        opened.close()


@pytest.fixture(params=COMPONENTS)
def case(request, parts):
    framework, _, name = request.param.partition(": ")
    return {"haystack": haystack_case, "langchain": langchain_case}[framework](name, parts)


def close(component):
    """With the stores that it reads, as far as they are its own."""
    component.close()
    for name in ("vectorstore", "document_store", "base_retriever"):
        part = getattr(component, name, None)
        part = getattr(part, "vectorstore", part)
        if hasattr(part, "close"):  # else the settings of a store, which the component has closed
            part.close()


def near(found, expected):
    return [name for name, _ in found] == [name for name, _ in expected] and [
        number for _, number in found
    ] == pytest.approx([number for _, number in expected], abs=1e-5)


@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
@pytest.mark.parametrize("kind", COPIES)
def test_components_are_copied_deep_copied_and_pickled_before_and_after_use(case, kind, used):
    first = case.make()
    expected = case.ask(first)
    if not used and case.reopens:
        first.close()
        first = case.make()
    if kind == "pickle" and case.memory:
        with pytest.raises(TypeError, match=r"in memory .*cannot be pickled"):
            pickle.dumps(first)
        close(first)
        return
    second = COPIES[kind](first)
    assert type(second) is type(first)
    if kind == "pickle":
        close(first)  # a folder is open once at a time
    assert near(case.ask(second), expected)
    if kind != "pickle":
        second.close()
        assert near(case.ask(first), expected)
        if case.reopens:
            first.close()
            assert near(case.ask(second), expected)
    close(second)
    close(first)


def test_components_are_closed_and_go_on(case):
    component = case.make()
    expected = case.ask(component)
    before = loaded_models()
    component.close()
    component.close()
    assert loaded_models() <= before
    if case.reopens:
        assert near(case.ask(component), expected)
    else:
        with pytest.raises(StoreError, match="closed"):
            case.ask(component)
    close(component)


def test_a_pickle_opens_its_model_at_first_use(tiny_xlmr):
    ranker, reranker = E2RankRanker(model=tiny_xlmr), E2RankReranker(model=tiny_xlmr)
    expected = ranked(ranker), compressed(reranker)
    text = pickle.dumps((ranker, reranker))
    ranker.close()
    reranker.close()
    before = loaded_models()
    again = pickle.loads(text)
    assert loaded_models() == before
    assert near(ranked(again[0]), expected[0])
    assert near(compressed(again[1]), expected[1])
    assert loaded_models() == before + 1
    for component in again:
        component.close()


@pytest.mark.parametrize("place", ["a folder", "memory"])
def test_a_pipeline_and_a_tool_with_our_components_are_deep_copied(place, parts):
    store = parts.document_store(place)
    model = parts.models["e2rank"]
    pipeline = Pipeline()
    pipeline.add_component("retriever", HaystackRetriever(document_store=store, model=model))
    pipeline.add_component("ranker", E2RankRanker(model=model, document_store=store))
    pipeline.connect("retriever.documents", "ranker.documents")
    asked = {"retriever": {"query": QUERY}, "ranker": {"query": QUERY}}
    tool = ComponentTool(
        component=HaystackRetriever(document_store=store, model=model),
        name="search",
        description="Finds documents.",
    )
    before = by_haystack(pipeline.run(asked)["ranker"]), by_haystack(tool.invoke(query=QUERY))
    copied, tools = copy.deepcopy(pipeline), copy.deepcopy(tool)
    assert near(by_haystack(copied.run(asked)["ranker"]), before[0])
    assert near(by_haystack(tools.invoke(query=QUERY)), before[1])
    for each in (pipeline, copied):
        each.get_component("retriever").close()
        each.get_component("ranker").close()
    for each in (tool, tools):
        each._component.close()


# The core's objects: an open model is no configuration.


@pytest.mark.parametrize("kind", ["deepcopy", "pickle"])
@pytest.mark.parametrize("system", ["e2rank", "resrank", "rankt5"])
def test_an_open_model_says_what_to_do_in_place_of_a_copy(kind, system, parts, tmp_path):
    with load_reranker(parts.models[system]) as reranker:
        store = core_store(parts.encoder, tmp_path)
        for held in (reranker, SearchPipeline(parts.encoder, store, reranker), parts.encoder):
            with pytest.raises(TypeError, match=r"open model, .*open it .*from_pretrained\("):
                COPIES[kind](held)
        with pytest.raises(TypeError, match="open model"):
            copy.copy(parts.encoder)
        store.close()


def test_a_store_is_copied_and_pickled_with_its_settings(parts, tmp_path):
    first = core_store(parts.encoder, parts.folder)
    pickled = pickle.loads(pickle.dumps(first))
    assert pickled.count() == 4
    copied = copy.deepcopy(first)
    first.close()
    assert copied.count() == 4
    copied.close()
    assert pickled.count() == 4
    pickled.close()
    server = QdrantStore.open("https://localhost:7000", "docs", api_key="secret", timeout=7)
    again = pickle.loads(pickle.dumps(server))
    assert (again.name, again.layout) == (server.name, server.layout)
    kept = ("url", "api_key", "timeout", "prefer_grpc")
    options, expected = again.client.init_options, server.client.init_options
    assert [options[key] for key in kept] == [expected[key] for key in kept]
    assert again.client is not server.client
    server.close()
    again.close()


# In a process of its own.


def ask_in_child(asked):
    return [ask(component) for ask, component in asked]


@pytest.mark.slow
def test_components_survive_spawn(parts):
    store = parts.vector_store("a folder")
    asked = [
        (compressed, E2RankReranker(model=parts.models["e2rank"])),
        (invoked, E2RankRetriever(vectorstore=store)),
        (ranked, E2RankRanker(model=parts.models["resrank"])),
    ]
    expected = ask_in_child(asked)
    text = pickle.dumps(asked)
    for _, component in asked:
        close(component)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(ask_in_child, pickle.loads(text)).result(120)
    assert all(near(one, other) for one, other in zip(found, expected, strict=True))
