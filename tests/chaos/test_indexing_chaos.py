"""Indexing that is killed, out of room or beside another writer loses nothing: `make chaos`."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from e2rank_rag.errors import StoreError
from e2rank_rag.indexing import index_file
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store.qdrant import QdrantStore
from tests.chaos import texts
from tests.kit import stored_points

pytestmark = pytest.mark.chaos

COUNT = 1500
QUERIES = texts.QUERIES[:4]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    records = ({"_id": str(number), "text": texts.text(number)} for number in range(COUNT))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def indexing(corpus, index, model, **options):
    """The index command in a process of its own."""
    command = [sys.executable, "-m", "e2rank_rag.cli", "index", str(corpus)]
    command += ["--index", str(index), "--model", str(model)]
    environment = {**os.environ, "TERM": "dumb"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def rankings(index, model):
    """Ids and scores of a reranked search over the whole index."""
    encoder = Encoder.from_pretrained(model)
    store = QdrantStore.open(index, "documents")
    try:
        pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
        found = pipeline.search_batch(QUERIES, top_k=20)
        return [[(hit.document.id, hit.score) for hit in hits] for hits in found]
    finally:
        store.close()
        encoder.close()


@pytest.fixture(scope="module")
def undisturbed(corpus, tiny_bert, tmp_path_factory):
    """What an index says that nothing has happened to."""
    index = tmp_path_factory.mktemp("undisturbed") / "index"
    process = indexing(corpus, index, tiny_bert)
    assert process.wait(timeout=120) == 0
    process.communicate()
    return rankings(index, tiny_bert)


def check_undisturbed(index, model, undisturbed):
    for answer, expected in zip(rankings(index, model), undisturbed, strict=True):
        texts.check_same(answer, expected)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_killed_run_goes_on_and_ends_with_the_same_rankings(
    corpus, tiny_bert, tmp_path, undisturbed, share
):
    index = tmp_path / "index"
    process = indexing(corpus, index, tiny_bert)
    deadline = time.monotonic() + 120
    while stored_points(index) < share * COUNT or (share == 0.0 and not index.exists()):
        assert process.poll() is None or stored_points(index) == COUNT
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    again = indexing(corpus, index, tiny_bert)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    check_undisturbed(index, tiny_bert, undisturbed)


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(corpus, tiny_bert, tmp_path, undisturbed):
    index = tmp_path / "index"

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    process = indexing(corpus, index, tiny_bert, preexec_fn=little_room)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in errors
    again = indexing(corpus, index, tiny_bert)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    check_undisturbed(index, tiny_bert, undisturbed)


def test_a_second_writer_of_a_folder_is_refused_and_the_first_goes_on(
    corpus, tiny_bert, tmp_path, undisturbed
):
    index = tmp_path / "index"
    first = indexing(corpus, index, tiny_bert)
    deadline = time.monotonic() + 120
    while not stored_points(index):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # the second must begin before the first has ended
    try:
        second = indexing(corpus, index, tiny_bert)
        _, errors = second.communicate(timeout=120)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert "open already" in errors
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    check_undisturbed(index, tiny_bert, undisturbed)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_cut_gzip_file_prunes_nothing(corpus, tiny_bert, tmp_path, kept):
    encoder = Encoder.from_pretrained(tiny_bert)
    store = QdrantStore.open(tmp_path / "index", "documents")
    try:
        index_file(corpus, encoder, store)
        whole = gzip.compress(corpus.read_bytes())
        cut = tmp_path / "corpus.jsonl.gz"
        cut.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(ValueError, match="gzip"):
            index_file(cut, encoder, store, prune=True)
        assert store.count() == COUNT
    finally:
        store.close()
        encoder.close()


def test_a_folder_that_is_read_only_is_an_error_in_words(corpus, tiny_bert, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "index"
    folder.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        QdrantStore.open(folder, "documents")
