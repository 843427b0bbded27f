"""After a fork nothing waits for the parent: models, stores and components go on in the child."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from haystack_integrations.components.embedders.e2rank import E2RankTextEmbedder
from langchain_core.documents import Document as LangChainDocument
from langchain_e2rank import E2RankEmbeddings, E2RankReranker

from e2rank_rag import locks
from e2rank_rag.errors import StoreError
from e2rank_rag.locks import Kept, Lock, opening
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document
from tests.forks import forked, held, outcome

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

TEXTS = ["cats purr", "dogs bark"]


def test_a_child_closes_and_goes_on_while_the_parents_job_runs(tiny_bert):
    encoder = Encoder.from_pretrained(tiny_bert)
    expected = encoder.encode_documents(TEXTS)

    def job(has_it, let_go):
        encoder.loaded.worker.run(lambda: [has_it.set(), let_go.wait(30)])

    def use():
        np.testing.assert_allclose(encoder.encode_documents(TEXTS), expected, atol=1e-5)
        encoder.close()

    with held(job):
        children = [forked(encoder.close) for _ in range(3)] + [forked(use) for _ in range(3)]
        outcomes = [outcome(child) for child in children]
    assert outcomes == [0] * 6
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS), expected)
    encoder.close()


def test_components_go_on_in_a_child_while_their_locks_are_held(tiny_bert):
    embeddings, reranker = E2RankEmbeddings(model=tiny_bert), E2RankReranker(model=tiny_bert)
    embedder = E2RankTextEmbedder(model=tiny_bert)
    expected = embeddings.embed_query("which animals purr?")
    embedder.warm_up()

    def take(has_it, let_go):
        with embeddings._opened._lock, reranker._other._lock, embedder._encoder._lock:
            has_it.set()
            let_go.wait(30)

    def use():
        documents = [LangChainDocument(page_content=text) for text in TEXTS]
        for component in (embeddings, reranker, embedder):
            component.close()
        assert len(reranker.compress_documents(documents, "which animals purr?")) == 2
        found = embeddings.embed_query("which animals purr?")
        again = embedder.run("which animals purr?")["embedding"]
        np.testing.assert_allclose([found, again], [expected, expected], atol=1e-5)

    with held(take):
        assert outcome(forked(use)) == 0
    for component in (embeddings, reranker, embedder):
        component.close()


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_a_store_is_read_in_a_child_while_the_parent_reads(place, tmp_path):
    store = QdrantStore.open(":memory:" if place == "memory" else tmp_path / "index", "docs")
    store.prepare(2)
    store.upsert([Document("a", "cats"), Document("b", "dogs")], np.eye(2, dtype=np.float32))

    def take(has_it, let_go):
        with store._connection._lock:
            has_it.set()
            let_go.wait(30)

    def use():
        found = store.search(np.array([1.0, 0.0], dtype=np.float32), top_k=2)
        assert [hit.document.id for hit in found] == ["a", "b"]

    with held(take):
        assert outcome(forked(use)) == 0
    store.close()


def test_a_child_that_closes_a_folder_leaves_it_locked_by_the_parent(tmp_path):
    store = QdrantStore.open(tmp_path, "docs")
    store.prepare(3)

    def close():
        store.close()
        with pytest.raises(StoreError, match="is open already"):
            QdrantStore.open(tmp_path, "docs")

    assert outcome(forked(close)) == 0
    assert outcome(forked(close)) == 0
    assert store.count() == 0
    store.close()


def test_a_child_asks_a_server_over_a_connection_of_its_own():
    store = QdrantStore.open("http://localhost:7000", "docs", timeout=7)
    client = store.client

    def use():
        assert store.client is not client
        assert store.client.init_options["timeout"] == 7
        store.close()

    assert outcome(forked(use)) == 0
    assert store.client is client
    store.close()


def test_a_fork_waits_for_what_is_being_opened_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(locks, "LONGEST_WAIT_S", 0.3)
    kept, lock = Kept(), Lock()
    over = []

    def brief(has_it, let_go):
        with opening():
            has_it.set()
            time.sleep(0.1)
            over.append(True)

    def endless(has_it, let_go):
        with lock:
            kept.get("a", lambda: [has_it.set(), let_go.wait(30)])

    def use():
        with lock:
            assert kept.get("b", lambda: "of the child") == "of the child"

    with held(brief):
        child = forked(lambda: None)
        assert over == [True]
        assert outcome(child) == 0
    with held(endless):
        assert outcome(forked(use)) == 0
    with opening():  # the forking thread does not wait for itself
        assert outcome(forked(use)) == 0


LOADING = """
import sys, threading, time
from tests.forks import forked, outcome
from langchain_e2rank import E2RankEmbeddings
from haystack_integrations.components.embedders.e2rank import E2RankTextEmbedder

def use():
    with_langchain, with_haystack = E2RankEmbeddings(model=MODEL), E2RankTextEmbedder(model=MODEL)
    assert with_langchain.embed_query("hi") and with_haystack.run("hi")["embedding"]
    with_langchain.close()
    with_haystack.close()

MODEL = sys.argv[1]
thread = threading.Thread(target=use)
thread.start()
children = []
for _ in range(4):
    time.sleep(0.2)
    children.append(forked(use, seconds=60))
thread.join()
outcomes = [outcome(child) for child in children]
assert outcomes == [0, 0, 0, 0], outcomes
"""


@pytest.mark.slow
def test_a_fork_while_a_model_loads_leaves_the_child_whole(tiny_bert):
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tiny_bert)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
