"""Bad records are reported or raised; prune deletes only documents that are known to be gone."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from e2rank_rag import indexing
from e2rank_rag.indexing import IndexReport, index_documents, index_file
from e2rank_rag.types import Document
from tests.indexing.conftest import DOCUMENTS, GOOD_RECORDS, stored
from tests.kit import write_jsonl

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
