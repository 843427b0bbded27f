"""Copies, deep copies and pickles of every component, before and after use.

Each is a component of its own with the same settings: the same answers, a model that it opens at
first use, and closing one leaves the other open.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

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
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.loaded import loaded_models
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import CrossEncoderReranker, ListwiseReranker, load_reranker
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


class Case:
    """A component, what is asked of it, and whether its documents are only in this process.

    models: folders that the component opens. stores: what the test has to close in the end.
    """

    def __init__(self, make, ask, *, memory=False):
        self.make = make
        self.ask = ask
        self.memory = memory


def by_haystack(answer):
    return [(document.id, document.score) for document in answer["documents"]]


def by_langchain(found):
    return [(document.id, document.metadata["relevance_score"]) for document in found]


def numbers(vectors):
    return [("vector", float(number)) for number in np.ravel(vectors)]


def reranker_case(model):
    return Case(
        lambda: E2RankReranker(model=model, top_n=None),
        lambda c: by_langchain(c.compress_documents(langchain_documents(), QUERY)),
    )


def ranker_case(model):
    return Case(
        lambda: E2RankRanker(model=model),
        lambda c: by_haystack(c.run(query=QUERY, documents=haystack_documents())),
    )


@pytest.fixture(
    params=[
        "haystack text embedder",
        "haystack document embedder",
        "haystack ranker e2rank",
        "haystack ranker resrank",
        "haystack ranker rankt5",
        "haystack ranker over a folder",
        "haystack retriever over a folder",
        "haystack retriever over memory",
        "haystack retriever over our memory",
        "haystack retriever over our folder",
        "langchain embeddings",
        "langchain reranker e2rank",
        "langchain reranker resrank",
        "langchain reranker rankt5",
        "langchain retriever over a retriever",
        "langchain retriever over memory",
        "langchain retriever over a folder",
        "langchain vector store in memory",
        "langchain vector store in a folder",
    ]
)
def case(request, bert, tiny_bert, tiny_resrank, tiny_rankt5, tmp_path):
    folder = tmp_path / "index"
    models = {"e2rank": tiny_bert, "resrank": tiny_resrank, "rankt5": tiny_rankt5}
    name, closing = request.param, []

    def opened(store):
        closing.append(store)
        return store

    def vector_store(location):
        embeddings = opened(E2RankEmbeddings(model=tiny_bert))
        return opened(
            E2RankVectorStore.from_documents(langchain_documents(), embeddings, location=location)
        )

    def run_retriever(component):
        return by_haystack(component.run(query=QUERY))

    def invoke(component):
        return by_langchain(component.invoke(QUERY))

    def search(component):
        found = component.similarity_search_with_score(QUERY, k=4)
        return [(document.id, score) for document, score in found]

    if name == "haystack text embedder":
        case = Case(
            lambda: E2RankTextEmbedder(model=tiny_bert),
            lambda c: numbers(c.run(QUERY)["embedding"]),
        )
    elif name == "haystack document embedder":
        case = Case(
            lambda: E2RankDocumentEmbedder(model=tiny_bert),
            lambda c: numbers([d.embedding for d in c.run(haystack_documents())["documents"]]),
        )
    elif name.startswith("haystack ranker over"):
        store = haystack_store(bert, folder)
        case = Case(
            lambda: E2RankRanker(model=tiny_bert, document_store=store),
            lambda c: by_haystack(c.run(query=QUERY, documents=haystack_documents())),
        )
    elif name.startswith("haystack ranker"):
        case = ranker_case(models[name.rpartition(" ")[2]])
    elif name.startswith("haystack retriever"):
        location = ":memory:" if "memory" in name else folder
        make = core_store if "our" in name else haystack_store
        store = make(bert, location)
        case = Case(
            lambda: HaystackRetriever(document_store=store, model=tiny_bert),
            run_retriever,
            memory="memory" in name,
        )
        if "our" in name:
            closing.append(store)
    elif name == "langchain embeddings":
        case = Case(
            lambda: E2RankEmbeddings(model=tiny_bert), lambda c: numbers(c.embed_documents(TEXTS))
        )
    elif name.startswith("langchain reranker"):
        case = reranker_case(models[name.rpartition(" ")[2]])
    elif name == "langchain retriever over a retriever":
        base = vector_store(folder).as_retriever()
        case = Case(
            lambda: E2RankRetriever(base_retriever=base, reranker=E2RankReranker(model=tiny_bert)),
            invoke,
        )
    elif name.startswith("langchain retriever"):
        store = vector_store(":memory:" if "memory" in name else folder)
        case = Case(lambda: E2RankRetriever(vectorstore=store), invoke, memory="memory" in name)
    else:
        location = ":memory:" if "memory" in name else folder
        case = Case(lambda: vector_store(location), search, memory="memory" in name)
    case.release = lambda: [each.close() for each in reversed(closing)]
    yield case
    case.release()


def close(component):
    component.close()
    for name in ("vectorstore", "document_store", "base_retriever", "vector_store"):
        part = getattr(component, name, None)
        getattr(part, "vectorstore", part) is not None and close(getattr(part, "vectorstore", part))


def near(found, expected):
    return [name for name, _ in found] == [name for name, _ in expected] and [
        number for _, number in found
    ] == pytest.approx([number for _, number in expected], abs=1e-5)


@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
@pytest.mark.parametrize("kind", COPIES)
def test_components_are_copied_deep_copied_and_pickled_before_and_after_use(case, kind, used):
    first = case.make()
    expected = case.ask(first)
    if not used:
        first.close()
        first = case.make()
    if kind == "pickle" and case.memory:
        with pytest.raises(TypeError, match="in memory"):
            pickle.dumps(first)
        first.close()
        return
    second = COPIES[kind](first)
    assert type(second) is type(first)
    if kind == "pickle":
        # A folder is open in one process, and in one client of it, at a time.
        close(first)
    assert near(case.ask(second), expected)
    second.close()
    if kind != "pickle":
        assert near(case.ask(first), expected)
        first.close()
        assert near(case.ask(second), expected)
        second.close()
    close(second)
