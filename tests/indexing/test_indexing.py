"""Indexing runs again, goes on, changes, prunes and reports; what is bad is never lost silently."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from e2rank_rag import indexing
from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.indexing import IndexReport, index_documents, index_file
from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from e2rank_rag.types import Document
from tests.encoders import CountingEncoder, TableEncoder, another_model
from tests.indexing.conftest import DOCUMENTS, GOOD_RECORDS, TEXTS, stored
from tests.kit import stored_points, write_jsonl

# What is stored


def test_documents_are_stored_with_the_encoders_vectors(encoder, store):
    report = index_documents(iter(DOCUMENTS), encoder, store)
    assert report == IndexReport(added=7)
    assert report.seconds > 0
    assert stored(store) == {document.id: document for document in DOCUMENTS}
    vectors = store.get([d.id for d in DOCUMENTS], with_embeddings=True)
    np.testing.assert_allclose(
        [item.embedding for item in vectors.values()],
        encoder.encode_documents(TEXTS),
        atol=1e-5,
    )
    assert (store.fingerprint, store.model, store.dim) == (
        encoder.fingerprint,
        encoder.name,
        encoder.dim,
    )


def test_a_second_run_encodes_nothing(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    encoder.documents.clear()
    assert index_documents(DOCUMENTS, encoder, store) == IndexReport(unchanged=7)
    assert encoder.documents == []
    assert store.count() == 7


def test_new_documents_join_what_is_stored(encoder, store):
    index_documents(DOCUMENTS[:3], encoder, store)
    assert index_documents(DOCUMENTS, encoder, store) == IndexReport(added=4, unchanged=3)
    assert sorted(encoder.documents) == sorted(TEXTS)


def test_a_changed_text_is_encoded_again(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    encoder.documents.clear()
    changed = replace(DOCUMENTS[2], text="bread rises")
    report = index_documents([*DOCUMENTS[:2], changed, *DOCUMENTS[3:]], encoder, store)
    assert report == IndexReport(updated=1, unchanged=6)
    assert encoder.documents == ["bread rises"]
    item = store.get(["d2"], with_embeddings=True)["d2"]
    assert item.document == changed
    np.testing.assert_allclose(
        item.embedding, encoder.encode_documents(["bread rises"])[0], atol=1e-5
    )


def test_a_changed_meta_is_written_without_encoding(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    encoder.documents.clear()
    changed = replace(DOCUMENTS[2], meta={"year": 2024})
    report = index_documents([changed, *DOCUMENTS[3:]], encoder, store)
    assert report == IndexReport(meta_updated=1, unchanged=4)
    assert encoder.documents == []
    assert store.get(["d2"])["d2"].document == changed
    assert store.count({"year": 2024}) == 1


@pytest.mark.parametrize(("before", "after"), [(1, True), ([0, {"x": 0}], [0, {"x": False}])])
def test_a_number_that_becomes_a_truth_is_a_change(encoder, store, before, after):
    document = replace(DOCUMENTS[0], meta={"flag": before})
    index_documents([document], encoder, store)
    changed = replace(document, meta={"flag": after})
    assert index_documents([changed], encoder, store).meta_updated == 1
    assert json.dumps(store.get([document.id])[document.id].document.meta["flag"]) == json.dumps(
        after
    )
    assert index_documents([changed], encoder, store).unchanged == 1


def test_a_tuple_in_meta_is_the_list_that_a_store_gives_back(encoder, store):
    document = Document("a", "cats", {"tags": ("x", "y"), "nested": {"n": (1, 2)}})
    index_documents([document], encoder, store)
    assert index_documents([document], encoder, store) == IndexReport(unchanged=1)


def test_without_prune_nothing_is_deleted(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    index_documents(DOCUMENTS[:2], encoder, store)
    assert store.count() == 7


def test_prune_deletes_what_the_source_no_longer_has(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    report = index_documents(DOCUMENTS[:5], encoder, store, prune=True)
    assert report == IndexReport(unchanged=5, pruned=2)
    assert sorted(stored(store)) == ["d0", "d1", "d2", "d3", "d4"]


def test_cut_documents_are_counted(encoder, store, caplog):
    long = [Document(f"long{i}", "cats purr " * 300) for i in range(3)]
    report = index_documents([*DOCUMENTS, *long], encoder, store)
    assert (report.added, report.cut) == (10, 3)
    assert report.cut_at == encoder.inner.recipe.document_tokens == 128
    assert caplog.records == []


# Memory


def test_the_source_is_read_one_batch_ahead_and_no_more(encoder, store, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH_DOCUMENTS", 2)
    ahead = []

    def source():
        for place, document in enumerate(DOCUMENTS, start=1):
            ahead.append(place - store.count() if store.exists else place)
            yield document

    index_documents(source(), encoder, store)
    assert ahead == [1, 2, 1, 2, 1, 2, 1]


def test_a_batch_ends_early_when_its_texts_are_long(encoder, store, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH_CHARACTERS", 10)
    batches = []
    monkeypatch.setattr(store, "upsert", lambda documents, _: batches.append(len(documents)))
    index_documents(DOCUMENTS, encoder, store)
    assert batches == [1] * 7


# Odd but good


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_plain_and_gzip_files_are_read(encoder, store, tmp_path, name):
    assert index_file(write_jsonl(tmp_path / name, GOOD_RECORDS), encoder, store).added == 7
    assert stored(store) == {document.id: document for document in DOCUMENTS}


def test_a_document_of_a_megabyte_is_stored_whole(encoder, store):
    text = "cats purr " * 100_000
    report = index_documents([Document("big", text)], encoder, store)
    assert (report.added, report.cut) == (1, 1)
    assert store.get(["big"])["big"].document.text == text


def test_nul_characters_come_back(encoder, store):
    document = Document("a\x00b", "cats\x00purr", {"note": "\x00"})
    index_documents([document], encoder, store)
    assert stored(store) == {"a\x00b": document}
    assert index_documents([document], encoder, store) == IndexReport(unchanged=1)


# Whose collection


def test_a_collection_of_another_dimension_is_refused(encoder, store):
    index_documents([Document("x", "x")], TableEncoder({"x": [1, 0]}), store)
    with pytest.raises(StoreError, match="holds vectors of 2 dimensions, these have 32"):
        index_documents(DOCUMENTS, encoder, store)


def test_a_collection_of_another_model_is_refused(encoder, store, bert):
    index_documents(DOCUMENTS, encoder, store)
    turned = CountingEncoder(bert, turn=another_model(bert.dim))
    with pytest.raises(StoredVectorMismatch, match="was written by"):
        index_documents(DOCUMENTS, turned, store)
    assert turned.documents == []


@pytest.fixture(params=["haystack", "langchain"])
def foreign(request, bert):
    """A collection that another tool filled, without a fingerprint."""
    layout = {} if request.param == "haystack" else {"layout": LANGCHAIN_LAYOUT}
    store = QdrantStore.open(":memory:", "theirs", **layout)
    store.prepare(bert.dim)
    documents = [Document(str(i), text) for i, text in enumerate(TEXTS)]
    store.upsert(documents, bert.encode_documents(TEXTS))
    yield store
    store.close()


@pytest.mark.parametrize("new_id", ["0", "100"])
def test_a_foreign_collection_of_another_model_is_refused_before_writing(foreign, bert, new_id):
    before = stored(foreign)
    turned = CountingEncoder(bert, turn=another_model(bert.dim))
    with pytest.raises(StoredVectorMismatch, match="another model wrote it"):
        index_documents([Document(new_id, "something new")], turned, foreign)
    assert stored(foreign) == before


def test_a_foreign_collection_of_this_model_is_probed_and_then_used(foreign, encoder):
    report = index_documents(
        [Document("0", TEXTS[0]), Document("100", "something new")], encoder, foreign
    )
    assert report == IndexReport(added=1, unchanged=1)
    assert len(encoder.documents) == 2 + 1
    assert foreign.count() == 8


# Progress and interruption


def test_progress_goes_to_stderr_with_the_number_of_lines(encoder, store, tmp_path, capsys):
    index_file(write_jsonl(tmp_path / "c.jsonl", GOOD_RECORDS), encoder, store, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "indexing: 0 of 7\n"


class StopAt:
    """Ctrl-C once so many documents have been asked for."""

    def __init__(self, encoder, documents):
        self.encoder, self.left = encoder, documents

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_documents(self, documents, *, on_cut=None):
        self.left -= len(documents)
        if self.left < 0:
            raise KeyboardInterrupt
        return self.encoder.encode_documents(documents, on_cut=on_cut)


def test_an_interrupted_run_goes_on_where_it_was(encoder, store, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH_DOCUMENTS", 2)
    with pytest.raises(KeyboardInterrupt):
        index_documents(DOCUMENTS, StopAt(encoder, 4), store)
    assert store.count() == 4
    assert index_documents(DOCUMENTS, encoder, store) == IndexReport(added=3, unchanged=4)
    assert sorted(encoder.documents) == sorted(TEXTS)


def test_ctrl_c_in_the_middle_of_indexing_loses_and_doubles_nothing(tmp_path, interruptible):
    count = 3 * indexing.BATCH_DOCUMENTS
    records = [{"_id": str(i), "text": f"{i} " + "ferries cross " * 10} for i in range(count)]
    corpus, index = write_jsonl(tmp_path / "corpus.jsonl", records), tmp_path / "index"
    command = [sys.executable, "-m", "e2rank_rag.cli", "index", str(corpus), "--index", str(index)]
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while stored_points(index) < indexing.BATCH_DOCUMENTS and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert re.search(r"\d+ documents are stored", stderr)
    assert "Traceback" not in stderr
    written = stored_points(index)
    assert indexing.BATCH_DOCUMENTS <= written < count

    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert again.returncode == 0
    assert f"{count - written:,} added, {written:,} unchanged" in again.stdout
    store = QdrantStore.open(index, "documents")
    assert store.count() == count
    assert sorted(store.ids(), key=int) == [record["_id"] for record in records]
    store.close()
