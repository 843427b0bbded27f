"""Indexing runs again, goes on, changes, prunes and reports; what is bad is never lost silently."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
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

DOCUMENTS = [
    Document(f"d{i}", f"cats purr and dogs bark {i} times", {"place": i, "tags": ["a", "b"]})
    for i in range(7)
]
TEXTS = [document.text for document in DOCUMENTS]


@pytest.fixture
def encoder(bert):
    return CountingEncoder(bert)


@pytest.fixture
def store():
    store = QdrantStore.open(":memory:", "things")
    yield store
    store.close()


def stored(store):
    return {id: item.document for id, item in store.get(sorted(store.ids())).items()}


def write_jsonl(path, records):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


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


# Bad records

BAD_RECORDS = [
    ({"_id": "d0", "text": "cats again"}, "id 'd0' was given before; ids must be unique"),
    ({"_id": "bad", "text": "", "title": " "}, "no text: text and title are empty"),
    ({"_id": "bad", "text": "lone \ud800"}, "lone surrogate U+D800 at character 6 of text"),
    ({"_id": "bad", "text": "t", "n": 10**30}, "meta['n'] of document 'bad'"),
    ('{"_id": "bad", "text": "t", "x": 1e400}', "meta['x'] of document 'bad' is inf"),
    ({"text": "no id"}, "no id: expected _id or id"),
    ("{not json", "not JSON"),
]
GOOD_RECORDS = [{"_id": d.id, "text": d.text, "metadata": dict(d.meta)} for d in DOCUMENTS]


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS)
def test_a_bad_record_ends_the_run_with_file_and_line(encoder, store, tmp_path, record, reason):
    path = write_jsonl(tmp_path / "corpus.jsonl", [*GOOD_RECORDS[:2], "", record])
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        index_file(path, encoder, store)
    assert str(caught.value).startswith(f"{path}, line 4: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS)
def test_a_bad_record_is_reported_by_line_and_skipped(encoder, store, tmp_path, record, reason):
    path = write_jsonl(tmp_path / "corpus.jsonl", [GOOD_RECORDS[0], record, *GOOD_RECORDS[1:]])
    bad = []
    report = index_file(path, encoder, store, on_bad=bad.append)
    assert report == IndexReport(added=7, skipped=1)
    assert report.read == 8
    assert bad[0].line == 2
    assert reason in bad[0].reason
    assert stored(store) == {document.id: document for document in DOCUMENTS}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document("", "text"), "the id is empty"),
        (Document("a", ""), "document 'a' has no text"),
        (Document("a", " \n\t"), "document 'a' has no text"),
        (Document("a", "lone \udfff"), "half of a surrogate pair"),
        (Document("a\ud800", "text"), "half of a surrogate pair"),
        (Document("a", "text", {"t\ud800": 1}), "half of a surrogate pair"),
        (Document("a", None), "the text of document 'a' is NoneType, not str"),
        (Document(7, "text"), "the document id 7 is int, not str"),
        (Document("a", "text", {"when": np.float32(1)}), "meta['when'] of document 'a'"),
        (Document("a", "text", {"n": float("nan")}), "meta['n'] of document 'a'"),
        (DOCUMENTS[0], "id 'd0' was given before"),
    ],
)
def test_documents_that_no_store_takes_are_reported_by_place(encoder, store, document, reason):
    bad = []
    report = index_documents([*DOCUMENTS, document], encoder, store, on_bad=bad.append)
    assert report == IndexReport(added=7, skipped=1)
    assert bad[0].line == 8
    assert reason in bad[0].reason
    assert index_documents(DOCUMENTS, encoder, store) == IndexReport(unchanged=7)
    with pytest.raises(ValueError, match="documents, line 8: "):
        index_documents([*DOCUMENTS, document], encoder, store)


def test_meta_nested_beyond_all_measure_is_a_bad_record(encoder, store):
    meta = {}
    for _ in range(100_000):
        meta = {"deeper": meta}
    bad = []
    index_documents([*DOCUMENTS, Document("deep", "t", meta)], encoder, store, on_bad=bad.append)
    assert [record.reason for record in bad] == ["the meta of document 'deep' is nested too deeply"]


def test_what_was_written_before_a_bad_record_stays(encoder, store, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH_DOCUMENTS", 2)
    path = write_jsonl(tmp_path / "corpus.jsonl", [*GOOD_RECORDS[:5], "oops"])
    with pytest.raises(ValueError, match="line 6"):
        index_file(path, encoder, store)
    assert sorted(stored(store)) == ["d0", "d1", "d2", "d3"]


def test_prune_keeps_what_a_bad_record_names(encoder, store, tmp_path):
    index_documents(DOCUMENTS, encoder, store)
    path = write_jsonl(tmp_path / "corpus.jsonl", [GOOD_RECORDS[0], {"_id": "d1", "text": ""}])
    report = index_file(path, encoder, store, on_bad=lambda bad: None, prune=True)
    assert report == IndexReport(unchanged=1, skipped=1, pruned=5)
    assert sorted(stored(store)) == ["d0", "d1"]


def test_prune_is_refused_where_a_bad_record_does_not_say_its_id(encoder, store, tmp_path):
    index_documents(DOCUMENTS, encoder, store)
    path = write_jsonl(tmp_path / "corpus.jsonl", [GOOD_RECORDS[0], '{"_id": "d1", "text"'])
    with pytest.raises(ValueError, match=r"line 2: not JSON.*run without prune"):
        index_file(path, encoder, store, on_bad=lambda bad: None, prune=True)
    assert store.count() == 7


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite_with_the_same_size_and_time(path):
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        file.write(b" " * (before.st_size - file.tell()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() + b'{"_id": "new", "text": "not read"}\n')
    other.replace(path)


def append(path):
    with path.open("ab") as file:
        file.write(b'{"_id": "d0"')


class ChangesTheSource:
    """Something happens to the file while its first documents are encoded."""

    def __init__(self, encoder, change):
        self.encoder, self.change = encoder, change

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_documents(self, documents, *, on_cut=None):
        self.change()
        return self.encoder.encode_documents(documents, on_cut=on_cut)


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        truncate,
        rewrite_with_the_same_size_and_time,
        replace_by_another,
        append,
        lambda path: path.unlink(),
    ],
    ids=["truncated", "overwritten", "replaced", "appended", "removed"],
)
def test_prune_deletes_only_what_is_known_to_be_gone(
    encoder, store, tmp_path, monkeypatch, name, progress, change
):
    monkeypatch.setattr(indexing, "BATCH_DOCUMENTS", 1)
    kept = [{"_id": f"kept{i}", "text": f"cats purr {i} " * 400} for i in range(30)]
    path = write_jsonl(tmp_path / name, [{"_id": "first", "text": "new"}, *kept])
    index_documents(
        [Document(r["_id"], "as it was") for r in [*kept, {"_id": "gone"}]], encoder, store
    )
    changing = ChangesTheSource(encoder, lambda: path.exists() and change(path))
    with pytest.raises(
        ValueError, match=r"no whole gzip|changed while|no longer be read|line \d+:"
    ):
        index_file(path, changing, store, prune=True, progress=progress)
    assert {"gone", *(r["_id"] for r in kept)} <= set(store.ids())


def test_prune_keeps_what_another_writer_adds_meanwhile(encoder, store):
    index_documents(DOCUMENTS, encoder, store)

    def source():
        yield DOCUMENTS[0]
        index_documents([Document("theirs", "written meanwhile")], encoder, store)

    report = index_documents(source(), encoder, store, prune=True)
    assert report == IndexReport(unchanged=1, pruned=6)
    assert sorted(store.ids()) == ["d0", "theirs"]


def test_a_file_that_changes_without_prune_is_warned_of(encoder, store, tmp_path, caplog):
    path = write_jsonl(tmp_path / "corpus.jsonl", GOOD_RECORDS)
    index_file(path, ChangesTheSource(encoder, lambda: append(path)), store)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path} changed while it was read: index again, documents may be missing"
    ]


@pytest.mark.parametrize("fails", [True, False])
def test_an_iterator_that_breaks_off_prunes_nothing(encoder, store, fails):
    index_documents(DOCUMENTS, encoder, store)

    def broken():
        yield from DOCUMENTS[:3]
        if fails:
            raise ConnectionError("the source is gone")

    with pytest.raises(
        (ConnectionError, ValueError), match=r"source is gone|3 documents came .* 7"
    ):
        index_documents(broken(), encoder, store, prune=True, total=7)
    assert store.count() == 7


@pytest.mark.parametrize("progress", [False, True])
def test_a_pipe_is_read_once_and_never_pruned_from(encoder, store, tmp_path, progress):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = "".join(json.dumps(record) + "\n" for record in GOOD_RECORDS)
    writer = threading.Thread(target=pipe.write_text, args=(data,))
    writer.start()
    assert index_file(pipe, encoder, store, progress=progress) == IndexReport(added=7)
    writer.join()
    with pytest.raises(ValueError, match="write it to a file and index that, or run without prune"):
        index_file(pipe, encoder, store, prune=True, progress=progress)
    assert store.count() == 7


@pytest.mark.parametrize("content", ["", "\n\n \n"])
def test_an_empty_corpus_is_an_error(encoder, store, tmp_path, content):
    path = tmp_path / "corpus.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="there is nothing to index"):
        index_file(path, encoder, store)
    with pytest.raises(ValueError, match="there is nothing to index"):
        index_documents([], encoder, store, prune=True)


def test_an_empty_corpus_prunes_nothing(encoder, store):
    index_documents(DOCUMENTS, encoder, store)
    with pytest.raises(ValueError, match="there is nothing to index"):
        index_documents([], encoder, store, prune=True)
    assert store.count() == 7


def test_a_source_of_bad_records_only_prunes_nothing(encoder, store, tmp_path):
    index_documents(DOCUMENTS, encoder, store)
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "new", "text": ""}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="no document that can be indexed"):
        index_file(path, encoder, store, prune=True, on_bad=lambda bad: None)
    assert store.count() == len(DOCUMENTS)


def test_a_missing_file_is_told_before_anything_is_made(encoder, store, tmp_path):
    with pytest.raises(FileNotFoundError):
        index_file(tmp_path / "nowhere.jsonl", encoder, store)
    assert not store.exists


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


def stored_points(index):
    """How many points a running process has written, read beside it."""
    files = list(index.glob("collection/*/storage.sqlite"))
    if not files:
        return 0
    try:
        connection = sqlite3.connect(f"file:{files[0]}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute("SELECT COUNT(*) FROM points").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return 0


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
