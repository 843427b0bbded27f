"""How the components open, share and close a document store."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from haystack_integrations.common.e2rank.documents import DocumentText
from haystack_integrations.common.e2rank.stores import reader_of
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from qdrant_client import QdrantClient

from e2rank_rag.errors import StoreError
from e2rank_rag.store import QdrantStore
from tests.integrations.haystack_kit import (
    QUERY,
    TEXTS,
    alike,
    documents,
    folder_store,
    ids,
    memory_store,
)

ALL = [f"d{number}" for number in range(len(TEXTS))]
FIRST, LAST = slice(0, 5), slice(5, None)


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    store = memory_store(32) if request.param == "memory" else folder_store(tmp_path)
    yield store
    store.close()


@pytest.fixture(params=["retriever", "ranker"])
def reading(request, tiny_bert):
    """A component that reads a document store, and the input of its `run`."""

    def make(store):
        if request.param == "retriever":
            return E2RankRetriever(store, model=tiny_bert, top_k=20), {"query": QUERY}
        ranker = E2RankRanker(model=tiny_bert, document_store=store, top_k=20)
        return ranker, {"query": QUERY, "documents": documents()}

    return make


# A reader never reopens with a destructive option


@pytest.mark.parametrize("closed_by", ["component", "component, async", "user"])
async def test_a_reader_never_reopens_with_a_destructive_option(
    closed_by, reading, embedded, tmp_path
):
    store = folder_store(tmp_path, recreate_index=True)
    store.write_documents(embedded)
    component, given = reading(store)
    expected = component.run(**given)
    for _ in range(2):
        if closed_by == "user":
            store.close()
        elif closed_by == "component":
            component.close()
        else:
            await component.close_async()
        assert alike(component.run(**given), expected)
        assert alike(await component.run_async(**given), expected)
    component.close()
    assert store.count_documents() == len(TEXTS)
    store.close()


def test_the_first_reading_drops_nothing_either(reading, embedded, tmp_path):
    with_documents = folder_store(tmp_path)
    with_documents.write_documents(embedded)
    with_documents.close()
    component, given = reading(folder_store(tmp_path, recreate_index=True))
    component.run(**given)
    component.close()
    assert with_documents.count_documents() == len(TEXTS)
    with_documents.close()


def test_a_pipeline_that_was_written_with_a_destructive_option_drops_nothing(
    reading, embedded, tmp_path
):
    store = folder_store(tmp_path, recreate_index=True)
    store.write_documents(embedded)
    component, given = reading(store)
    expected = component.run(**given)
    data = component.to_dict()
    component.close()
    data["init_parameters"]["document_store"]["init_parameters"]["recreate_index"] = True
    again = type(component).from_dict(data)
    for _ in range(2):
        assert alike(again.run(**given), expected)
        again.close()


async def test_the_asynchronous_client_of_the_user_drops_nothing_after_a_close(
    reading, embedded, tmp_path
):
    store = folder_store(tmp_path, recreate_index=True)
    await store.write_documents_async(embedded)
    component, given = reading(store)
    await component.run_async(**given)
    await component.close_async()
    assert await store.count_documents_async() == len(TEXTS)
    await store.close_async()
    store.close()


@pytest.mark.parametrize("closed", ["close", "close_async"])
async def test_a_user_who_only_writes_asynchronously_closes_and_goes_on(
    closed, reading, embedded, tmp_path
):
    store = folder_store(tmp_path, recreate_index=True)
    await store.write_documents_async(embedded)
    component, given = reading(store)
    await component.run_async(**given)
    if closed == "close":
        store.close()
    else:
        await store.close_async()
    other = QdrantClient(path=str(tmp_path))  # the folder is free
    other.close()
    assert await store.count_documents_async() == len(TEXTS)
    await component.run_async(**given)
    await component.close_async()
    assert await store.count_documents_async() == len(TEXTS)
    await store.close_async()
    store.close()


# Sync and async see one store


def write(store, documents, how):
    if how == "async":
        return asyncio.run(store.write_documents_async(documents))
    return store.write_documents(documents)


@pytest.mark.parametrize("run", ["run", "run_async"])
@pytest.mark.parametrize(
    ("before", "after"),
    [("async", None), ("async", "sync"), ("async", "async"), ("sync", "async"), (None, "async")],
)
def test_sync_and_async_see_one_store(before, after, run, store, embedded, tiny_bert):
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=20)

    def found():
        if run == "run":
            return sorted(ids(retriever.run(QUERY)))
        return sorted(ids(asyncio.run(retriever.run_async(QUERY))))

    written = 0
    if before:
        write(store, embedded[FIRST], before)
        written = len(embedded[FIRST])
        assert found() == sorted(ALL[FIRST])
    elif store.path is None:
        assert found() == []
    else:
        with pytest.raises(StoreError, match="no Qdrant folder"):
            found()
    if after:
        write(store, embedded[FIRST.stop if before else 0 :], after)
        written = len(embedded)
        assert found() == sorted(ALL)
    assert store.count_documents() == written
    assert asyncio.run(store.count_documents_async()) == written
    retriever.close()


def test_documents_that_were_written_both_ways_before_are_found_together(embedded, tiny_bert):
    store = memory_store(32)
    write(store, embedded[FIRST], "sync")
    write(store, embedded[LAST], "async")
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=20)
    assert sorted(ids(retriever.run(QUERY))) == sorted(ALL)
    assert store.count_documents() == len(ALL)
    retriever.close()


@pytest.mark.parametrize("change", [{"content": "another text"}, {"embedding": [1.0] * 32}])
def test_a_document_that_was_written_differently_both_ways_is_refused(change, embedded, tiny_bert):
    store = memory_store(32)
    write(store, embedded, "sync")
    write(store, [embedded[0], replace(embedded[1], **change)], "async")
    retriever = E2RankRetriever(store, model=tiny_bert)
    with pytest.raises(StoreError, match="'d1' was written differently"):
        retriever.run(QUERY)
    retriever.close()


async def test_writing_goes_on_both_ways_after_closing(store, embedded, tiny_bert):
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=20)
    await store.write_documents_async(embedded[FIRST])
    assert len(ids(await retriever.run_async(QUERY))) == 5
    await retriever.close_async()
    await store.write_documents_async(embedded[5:6])
    store.write_documents(embedded[6:7])
    assert len(ids(retriever.run(QUERY))) == 7
    await store.close_async()
    assert len(ids(await retriever.run_async(QUERY))) == 7
    retriever.close()


def test_a_server_is_read_through_a_client_of_our_own():
    store = QdrantDocumentStore(
        url="http://localhost:1", port=7000, timeout=3, index="news", recreate_index=True
    )
    handle = reader_of(store, DocumentText())
    opened = handle.open()
    assert opened is handle.open()
    assert (store._client, store._async_client) == (None, None)
    settings = {"url": "http://localhost:1", "port": 7000, "timeout": 3}
    assert {name: opened.settings[name] for name in settings} == settings
    store.index = "other"
    assert handle.open().collection == "other"
    handle.close()


# A store of any other kind


class Wrapped:
    """A store that is no QdrantStore and has no layout."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        if name == "layout":
            raise AttributeError(name)
        return getattr(self._store, name)

    def search_batch(self, *arguments, **options):
        return self._store.search_batch(*arguments, **options)


@pytest.mark.parametrize("kind", ["retriever", "ranker"])
async def test_any_store_is_searched_and_read(kind, embedded, tiny_bert):
    store = memory_store(32, embedded)
    ours = QdrantStore(store._client, "docs")
    answers = []
    for given in (ours, Wrapped(ours)):
        if kind == "retriever":
            component, inputs = E2RankRetriever(given, model=tiny_bert, top_k=20), {}
        else:
            component = E2RankRanker(model=tiny_bert, document_store=given, top_k=20)
            inputs = {"documents": documents()}
        answers.append(component.run(QUERY, **inputs))
        assert alike(await component.run_async(QUERY, **inputs), answers[-1])
    assert alike(*answers)
    assert len(ids(answers[1])) == 12
    with pytest.raises(ValueError, match="Wrapped"):
        component.to_dict()
    component.close()
    assert ours.count() == 12
    store.close()


# What is not there is an error, and is not made


def test_a_mistyped_index_name_is_an_error_and_creates_nothing(reading, embedded, tmp_path):
    written = folder_store(tmp_path)
    written.write_documents(embedded)
    written.close()
    mistyped = folder_store(tmp_path, index="dosc")
    component, given = reading(mistyped)
    with pytest.raises(StoreError, match=r"'dosc' is not there .* are there: 'docs'"):
        component.run(**given)
    component.close()
    ours = QdrantStore.open(tmp_path, "docs")
    assert [c.name for c in ours.client.get_collections().collections] == ["docs"]
    ours.close()
    # What was a mistake of the reader is none of the writer, who opens the same store.
    mistyped.write_documents(embedded[:1])
    assert mistyped.count_documents() == 1
    mistyped.close()


@pytest.mark.parametrize("form", ["QdrantDocumentStore", "location", "client"])
def test_a_mistyped_folder_is_an_error_and_creates_nothing(form, reading, tmp_path):
    folder = str(tmp_path / "idnex")
    given = {
        "QdrantDocumentStore": folder_store(folder),
        "location": {"location": folder, "collection": "docs"},
        "client": {"client": {"path": folder}, "collection": "docs"},
    }[form]
    component, inputs = reading(given)
    with pytest.raises(StoreError, match=r"no Qdrant folder at .*idnex"):
        component.run(**inputs)
    component.close()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_open_elsewhere_is_named(reading, embedded, tmp_path):
    client = QdrantClient(path=str(tmp_path))
    component, given = reading(folder_store(tmp_path))
    with pytest.raises(StoreError, match="is open already"):
        component.run(**given)
    client.close()
    component.close()


def test_a_reader_opens_in_a_thread_and_the_writer_goes_on(embedded, tmp_path, tiny_bert):
    store = folder_store(tmp_path)
    store.write_documents(embedded[FIRST])
    store.close()
    retriever = E2RankRetriever(store, model=tiny_bert, top_k=20)
    assert len(ids(asyncio.run(retriever.run_async(QUERY)))) == 5
    store.write_documents(embedded[LAST])
    vectors = np.array([document.embedding for document in store.filter_documents()])
    assert vectors.shape == (12, 32)
    assert len(ids(retriever.run(QUERY))) == 12
    retriever.close()


def test_components_that_share_a_folder_open_it_once(embedded, tmp_path, tiny_bert):
    store = folder_store(tmp_path)
    store.write_documents(embedded)
    for _ in range(10):
        store.close()
        handles = [reader_of(store, DocumentText()) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            counts = list(threads.map(lambda handle: handle.open().count(), handles))
        assert counts == [12] * 4
    store.close()


async def test_closing_frees_the_connections_to_a_server():
    store = QdrantDocumentStore(url="http://localhost:1", index="news")
    given = {"client": {"url": "http://localhost:1"}, "collection": "news"}
    for handle in (reader_of(store, DocumentText()), reader_of(given, DocumentText())):
        opened = handle.open()
        _ = opened.client
        connection = opened._connection
        client = connection._async()
        await handle.aclose()
        assert client._client._closed
        assert handle.open() is not opened
        handle.close()
