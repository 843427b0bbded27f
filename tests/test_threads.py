"""How many threads may be used, and that our arithmetic wakes none of BLAS."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_info

from e2rank_rag.rerankers import RocchioReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.threads import one_team, usable_threads
from e2rank_rag.types import Document, Hit
from tests import forks
from tests.encoders import TableEncoder

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def set_blas_threads(counts):
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    for library, count in zip(libraries, counts, strict=True):
        library.set_num_threads(count)
        # Otherwise this thread alone could set it again.
        getattr(library, "clear_controlling_thread", bool)()


@pytest.fixture(autouse=True)
def two_blas_threads():
    """Two threads of BLAS, also where a test run is limited to one."""
    before = [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]
    set_blas_threads([2] * len(before))
    yield
    set_blas_threads(before)


def blas_threads():
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("100000 100000", 1), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", CORES)],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_threads(tmp_path) == min(expected, CORES)


@pytest.mark.parametrize(("quota", "expected"), [(50_000, 1), (-1, CORES)])
def test_a_quota_of_version_1_counts_too(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_threads(tmp_path) == min(expected, CORES)


@pytest.mark.parametrize("content", [None, "", "nonsense", "0 0"])
def test_without_a_readable_quota_the_affinity_counts(tmp_path, content):
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert usable_threads(tmp_path) == CORES


def test_inside_there_is_one_thread_of_blas_and_afterwards_as_many_as_before():
    assert one_team(blas_threads)() == {1}
    assert blas_threads() == {2}


def test_an_error_inside_gives_the_threads_back():
    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        one_team(fail)()
    assert blas_threads() == {2}


def test_the_threads_come_back_when_the_last_of_several_callers_leaves():
    inside, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    @one_team
    def wait(event):
        inside.wait(10)
        event.wait(10)

    callers = [threading.Thread(target=wait, args=(event,)) for event in leave]
    for caller in callers:
        caller.start()
    inside.wait(10)
    leave[0].set()
    callers[0].join(10)
    assert blas_threads() == {1}
    leave[1].set()
    callers[1].join(10)
    assert blas_threads() == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_forked_meanwhile_has_the_threads_of_before():
    def check():
        assert blas_threads() == {2}

    assert one_team(lambda: forks.outcome(forks.forked(check)))() == 0


class Watching(TableEncoder):
    """Notes the threads of BLAS at each call."""

    def __init__(self, table):
        super().__init__(table)
        self.seen = []

    def encode_queries(self, queries):
        self.seen.append(blas_threads())
        return super().encode_queries(queries)


def test_reranking_and_local_searches_wake_no_threads(monkeypatch):
    encoder = Watching({"q": [1.0, 0.0], "a": [1.0, 1.0], "b": [0.0, 1.0]})
    candidates = [
        Hit(Document(id=text, text=text), 0.0, embedding=np.array(vector, dtype=np.float32))
        for text, vector in (("a", [1.0, 0.0]), ("b", [0.0, 1.0]))
    ]
    RocchioReranker(encoder, stored_vectors="trust").rerank("q", candidates)
    assert encoder.seen == [{1}]

    store = QdrantStore.open(":memory:", "animals")
    store.prepare(2)
    seen = []
    dot = np.dot
    monkeypatch.setattr(np, "dot", lambda *a, **o: seen.append(blas_threads()) or dot(*a, **o))
    store.upsert([hit.document for hit in candidates], np.eye(2, dtype=np.float32))
    store.search(np.array([1.0, 0.0], dtype=np.float32), top_k=1)
    store.close()
    assert seen
    assert set(map(frozenset, seen)) == {frozenset({1})}
    assert blas_threads() == {2}
