"""A BEIR folder gives its documents, queries and judgements, or says what it has instead."""

import gzip
import json
from pathlib import Path

import pytest

from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.types import Document

DOCUMENTS = [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "title": "", "text": "two"}]
QUERIES = [{"_id": "q2", "text": "second"}, {"_id": "q1", "text": "first"}]


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def build(folder: Path, *, packed: bool = False) -> Path:
    files = {
        "corpus.jsonl": jsonl(DOCUMENTS),
        "queries.jsonl": jsonl(QUERIES),
        "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n",
        "qrels/dev.tsv": b"q2\td2\t2\n",
    }
    (folder / "qrels").mkdir(parents=True)
    for name, data in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_is_read_plain_or_packed(tmp_path, packed):
    collection = Collection.open(build(tmp_path / "small", packed=packed))
    assert collection.name == "small"
    assert collection.splits == ("dev", "test")
    assert list(collection.documents()) == [
        Document("d1", "T one", {"title": "T"}),
        Document("d2", "two"),
    ]
    assert collection.qrels("test") == {"q1": {"d1": 1, "d2": 0}}


def test_queries_come_in_file_order_and_by_split(tmp_path):
    collection = Collection.open(build(tmp_path / "small"))
    assert list(collection.queries().items()) == [("q2", "second"), ("q1", "first")]
    assert collection.queries("dev") == {"q2": "second"}


def test_a_relative_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(build(tmp_path / "small"))
    assert Collection.open(".").name == "small"


def test_bad_documents_can_be_reported_and_skipped(tmp_path):
    folder = build(tmp_path / "small")
    (folder / "corpus.jsonl").write_bytes(jsonl([{"_id": "d0", "text": ""}, *DOCUMENTS]))
    reports = []
    documents = Collection.open(folder).documents(on_bad=reports.append)
    assert [document.id for document in documents] == ["d1", "d2"]
    assert [report.id for report in reports] == ["d0"]
    with pytest.raises(ValueError, match="line 1"):
        list(Collection.open(folder).documents())


def test_a_missing_folder_lists_its_neighbours(tmp_path):
    build(tmp_path / "small")
    with pytest.raises(FileNotFoundError, match=r"no folder .*smal; .* holds small/"):
        Collection.open(tmp_path / "smal")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_lists_what_is_there(tmp_path, name):
    folder = build(tmp_path / "small")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {name} or {name}\.gz in .* holds .*qrels/"):
        Collection.open(folder)


def test_an_unknown_split_lists_the_splits(tmp_path):
    collection = Collection.open(build(tmp_path / "small"))
    with pytest.raises(ValueError, match="no split 'train'; there is: dev, test"):
        collection.qrels("train")
    with pytest.raises(ValueError, match="no split 'train'"):
        collection.queries("train")


def test_a_folder_without_judgements_has_no_splits(tmp_path):
    folder = build(tmp_path / "small")
    for path in (folder / "qrels").iterdir():
        path.unlink()
    (folder / "qrels").rmdir()
    collection = Collection.open(folder)
    assert collection.splits == ()
    with pytest.raises(ValueError, match=r"there is: no qrels/\*\.tsv at all"):
        collection.qrels("test")


def test_a_judged_query_without_text_is_an_error(tmp_path):
    folder = build(tmp_path / "small")
    (folder / "queries.jsonl").write_bytes(jsonl(QUERIES[:1]))
    with pytest.raises(ValueError, match=r"lacks 1 of the 1 judged .* the first is 'q1'"):
        Collection.open(folder).queries("test")


def test_a_repeated_query_id_is_an_error(tmp_path):
    folder = build(tmp_path / "small")
    (folder / "queries.jsonl").write_bytes(jsonl(QUERIES * 2))
    with pytest.raises(ValueError, match="query id 'q2' is there twice"):
        Collection.open(folder).queries()
