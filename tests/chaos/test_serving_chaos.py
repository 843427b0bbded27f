"""Many clients at once, half of them cancelled, and many openings: `make chaos`.

Every answer is compared with the one that a quiet process gives.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store.qdrant import QdrantStore
from e2rank_rag.types import Document
from tests.chaos import texts

pytestmark = pytest.mark.chaos

CLIENTS = 64
SECONDS = 60
TEXTS = [texts.text(number) for number in range(200)]
QUERIES = texts.QUERIES


@pytest.fixture(scope="module")
def system(tiny_bert):
    encoder = Encoder.from_pretrained(tiny_bert)
    store = QdrantStore.open(":memory:", "documents")
    store.prepare(encoder.dim, fingerprint=encoder.fingerprint, model=encoder.name)
    documents = [Document(str(number), text) for number, text in enumerate(TEXTS)]
    store.upsert(documents, encoder.encode_documents(TEXTS))
    yield encoder, store, tiny_bert
    store.close()
    encoder.close()


def pipeline_search(encoder, store, model):
    pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))

    def found(hits):
        return [(hit.document.id, hit.score) for hit in hits]

    async def ask_async(query):
        return found(await pipeline.asearch(query, top_k=5, retrieve_k=50))

    return lambda query: found(pipeline.search(query, top_k=5, retrieve_k=50)), ask_async


def haystack_search(encoder, store, model):
    retrievers = pytest.importorskip("haystack_integrations.components.retrievers.e2rank")
    component = retrievers.E2RankRetriever(store, model=str(model), top_k=5, retrieve_k=50)

    def found(answer):
        return [(document.id, document.score) for document in answer["documents"]]

    async def ask_async(query):
        return found(await component.run_async(query=query))

    return lambda query: found(component.run(query=query)), ask_async


def langchain_search(encoder, store, model):
    langchain = pytest.importorskip("langchain_e2rank")
    vectorstore = langchain.E2RankVectorStore(
        embedding=langchain.E2RankEmbeddings(model=model),
        client=store.client,
        collection_name=store.collection,
    )
    retriever = langchain.E2RankRetriever(vectorstore=vectorstore, k=5, retrieve_k=50)

    def found(documents):
        return [(document.id, document.metadata["relevance_score"]) for document in documents]

    async def ask_async(query):
        return found(await retriever.ainvoke(query))

    return lambda query: found(retriever.invoke(query)), ask_async


@pytest.mark.parametrize("search", [pipeline_search, haystack_search, langchain_search])
def test_64_clients_get_the_answers_of_a_quiet_process(system, search):
    ask, ask_async = search(*system)
    expected = {query: ask(query) for query in QUERIES}
    end = time.monotonic() + SECONDS / 2

    def client(seed):
        picks = random.Random(seed)
        answers = 0
        while time.monotonic() < end:
            query = picks.choice(QUERIES)
            texts.check_same(ask(query), expected[query])
            answers += 1
        return answers

    with ThreadPoolExecutor(CLIENTS) as clients:
        assert sum(clients.map(client, range(CLIENTS))) > CLIENTS

    async def impatient_clients():
        picks, answers = random.Random(0), 0
        until = time.monotonic() + SECONDS / 2
        while time.monotonic() < until:
            asked = [picks.choice(QUERIES) for _ in range(CLIENTS)]
            tasks = [asyncio.create_task(ask_async(query)) for query in asked]
            await asyncio.sleep(picks.random() / 50)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for query, result in zip(asked, results, strict=True):
                if not isinstance(result, asyncio.CancelledError):
                    texts.check_same(result, expected[query])
                    answers += 1
        return answers

    assert asyncio.run(impatient_clients()) > CLIENTS


def test_90_openings_and_closings_leave_nothing_behind(tiny_bert, tmp_path):
    def open_search_close():
        encoder = Encoder.from_pretrained(tiny_bert)
        store = QdrantStore.open(tmp_path / "index", "documents")
        store.prepare(encoder.dim, fingerprint=encoder.fingerprint, model=encoder.name)
        store.upsert([Document("1", TEXTS[0])], encoder.encode_documents(TEXTS[:1]))
        hits = SearchPipeline(encoder, store, ListwiseReranker(encoder)).search(QUERIES[0])
        assert [hit.document.id for hit in hits] == ["1"]
        store.close()
        encoder.close()

    for _ in range(5):
        open_search_close()
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(90):
        open_search_close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() <= threads
