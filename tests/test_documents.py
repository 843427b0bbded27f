"""Which lines are documents, what they become, and what is said of the others."""

import gzip
import json

import pytest

from e2rank_rag.documents import BadRecord, compose_text, count_lines, read_documents
from e2rank_rag.types import Document


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "corpus.jsonl"
        encoded = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
        path.write_bytes(b"".join(line + b"\n" for line in encoded))
        return path

    return write


def only(path):
    (document,) = read_documents(path)
    return document


def bad(path):
    reports = []
    assert list(read_documents(path, on_bad=reports.append)) == []
    (report,) = reports
    return report


def test_title_and_text_are_joined_as_beir_does(write):
    path = write({"_id": "1", "title": "Fleas", "text": "They jump."})
    assert only(path) == Document("1", "Fleas They jump.", {"title": "Fleas"})


@pytest.mark.parametrize(
    ("title", "text", "whole"), [("a", "b", "a b"), ("", " b ", "b"), ("a", "", "a"), ("", "", "")]
)
def test_compose_text_strips_the_side_that_is_empty(title, text, whole):
    assert compose_text(title, text) == whole


@pytest.mark.parametrize("id_field", ["_id", "id"])
@pytest.mark.parametrize("text_field", ["text", "content", "contents"])
def test_every_name_of_id_and_text_is_read(write, id_field, text_field):
    assert only(write({id_field: "x", text_field: "t"})) == Document("x", "t")


def test_a_text_field_that_is_null_gives_way_to_the_next(write):
    assert only(write({"id": "x", "text": None, "contents": "t"})).text == "t"


def test_the_first_of_two_ids_is_the_id_and_the_other_is_meta(write):
    assert only(write({"_id": "a", "id": "b", "text": "t"})) == Document("a", "t", {"id": "b"})


def test_whole_number_ids_become_strings(write):
    assert only(write({"_id": 7, "text": "t"})).id == "7"


@pytest.mark.parametrize("meta_field", ["metadata", "meta"])
def test_meta_holds_other_fields_then_metadata_then_title(write, meta_field):
    record = {
        "_id": "1", "title": "T", "text": "t", "year": 1, "tags": ["a"], "kind": {"a": 1},
        meta_field: {"year": 2, "title": "overruled"},
    }  # fmt: skip
    assert only(write(record)).meta == {
        "year": 2, "tags": ["a"], "kind": {"a": 1}, "title": "T"
    }  # fmt: skip


@pytest.mark.parametrize("title", ["", "  ", None])
def test_an_empty_title_is_not_in_meta(write, title):
    assert only(write({"_id": "1", "title": title, "text": "t"})) == Document("1", "t")


def test_a_title_stands_alone_where_the_text_is_empty(write):
    assert only(write({"_id": "1", "title": "T", "text": ""})).text == "T"


@pytest.mark.parametrize(
    ("line", "reason", "doc_id"),
    [
        (b"{not json}", "not JSON: Expecting property name .* at character 2", None),
        (b'{"_id": "1", "text": "a', "not JSON: Unterminated string", None),
        (b'["_id"]', "a record must be a JSON object, got a list", None),
        (b"null", "a record must be a JSON object, got null", None),
        (b'{"_id": "1", "text": "a", "x": NaN}', "NaN is no JSON value", None),
        (b"[" * 100_000, "nested too deeply", None),
        (b'{"_id": "1", "x": ' + b"9" * 5000 + b"}", "limit", None),
        ({"text": "a"}, "no id: expected _id or id, the record has 'text'", None),
        ({}, "no id: .* the record is empty", None),
        ({"_id": "", "text": "a"}, "_id is empty", None),
        ({"id": " ", "text": "a"}, "id is empty", None),
        ({"_id": 1.5, "text": "a"}, "_id must be a string or a whole number, got a number", None),
        ({"_id": True, "text": "a"}, "whole number, got true or false", None),
        ({"_id": ["1"], "text": "a"}, "whole number, got a list", None),
        ({"_id": 1, "title": "T", "body": "b"}, "no text: expected text, .*, 'body'", "1"),
        ({"_id": "1", "text": " \n"}, "no text: text and title are empty", "1"),
        ({"_id": "1", "title": "", "content": None}, "content and title are empty", "1"),
        ({"_id": "1", "text": ["a"]}, "text must be a string, got a list", "1"),
        ({"_id": "1", "text": "a", "title": 3}, "title must be a string, got a number", "1"),
        ({"_id": "1", "text": "a", "meta": []}, "meta must be a JSON object, got a list", "1"),
        (b'{"_id": "1", "text": "\xff"}', "not UTF-8: byte 0xff at byte 23 of the line", None),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(write, line, reason, doc_id):
    path = write(b"", line)
    report = bad(path)
    assert (report.line, report.id) == (2, doc_id)
    with pytest.raises(ValueError, match=rf"corpus\.jsonl, line 2: .*{reason}"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("record", "where", "doc_id"),
    [
        ({"_id": "a\ud800", "text": "t"}, "U+D800 at character 2 of _id", None),
        ({"_id": "1", "text": "ab\udfff"}, "U+DFFF at character 3 of text", "1"),
        ({"_id": "1", "text": "t", "title": "\udabc"}, "U+DABC at character 1 of title", "1"),
        ({"_id": "1", "text": "t", "meta": {"a": ["", "\ud800"]}}, "of meta.a[1]", "1"),
        ({"_id": "1", "text": "t", "x\ud800": 1}, "of a field name of the record", "1"),
    ],
)
def test_a_lone_surrogate_is_refused_wherever_it_is(write, record, where, doc_id):
    report = bad(write(record))
    assert where in report.reason
    assert report.id == doc_id
    report.reason.encode()  # can be printed


def test_the_surrogates_of_a_pair_are_one_character(write):
    assert only(write(b'{"_id": "1", "text": "\\ud83d\\uDE00"}')).text == "\U0001f600"


def test_bad_records_are_reported_and_the_rest_is_read(write):
    reports = []
    path = write({"_id": "1", "text": "a"}, b"\xff\xfe", {"_id": "2"}, {"_id": "3", "text": "c"})
    assert [d.id for d in read_documents(path, on_bad=reports.append)] == ["1", "3"]
    assert [(r.line, r.id) for r in reports] == [(2, None), (3, "2")]
    assert all(isinstance(r, BadRecord) for r in reports)


def test_documents_before_a_bad_record_are_given(write):
    documents = read_documents(write({"_id": "1", "text": "a"}, b"{"))
    assert next(documents).id == "1"
    with pytest.raises(ValueError, match="line 2"):
        next(documents)


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_a_record(write):
    assert only(write(b'\xef\xbb\xbf{"_id": "1", "text": "a"}\r')).text == "a"


def test_gzip_is_read_by_name_and_a_cut_file_is_an_error(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    lines = b"".join(b'{"_id": %d, "text": "word %d"}\n' % (i, i * i) for i in range(3000))
    path.write_bytes(gzip.compress(lines))
    assert len(list(read_documents(path))) == count_lines(path) == 3000
    path.write_bytes(gzip.compress(lines)[:-5000])
    with pytest.raises(ValueError, match="no whole gzip data after line"):
        list(read_documents(path, on_bad=lambda record: None))


def test_an_empty_file_yields_nothing(write):
    assert list(read_documents(write())) == []


def test_a_missing_file_and_a_folder_are_errors_of_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_documents(tmp_path / "none.jsonl")
    with pytest.raises(IsADirectoryError, match=r"Collection\.open"):
        read_documents(tmp_path)
