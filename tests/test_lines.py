"""Lines come one by one, whatever is wrong with the file around them."""

import gzip
import json
import tracemalloc

import pytest

from e2rank_rag import lines
from e2rank_rag.documents import read_documents
from e2rank_rag.evaluation.runs import read_qrels, read_run
from e2rank_rag.lines import count_lines, read_lines, read_raw_lines, read_text, write_bytes
from e2rank_rag.training.config import read_config
from e2rank_rag.training.examples import read_examples


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_are_numbered_from_one_and_blank_ones_skipped(tmp_path, name):
    path = tmp_path / name
    write_bytes(path, b"\xef\xbb\xbfone\r\n\n  \nfour\nfive")
    assert list(read_lines(path)) == [(1, b"one"), (4, b"four"), (5, b"five")]
    assert count_lines(path) == 5


def test_only_newline_ends_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\u2028still one\x0b\x85\n".encode())
    assert [number for number, _ in read_lines(path)] == [1]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_an_empty_file_has_no_lines(tmp_path, name):
    write_bytes(tmp_path / name, b"")
    assert list(read_lines(tmp_path / name)) == []
    assert count_lines(tmp_path / name) == 0


@pytest.mark.parametrize("read", [count_lines, lambda path: list(read_lines(path))])
@pytest.mark.parametrize("damage", ["cut", "plain", "flipped"])
def test_damaged_gzip_is_an_error_that_names_the_file(tmp_path, read, damage):
    data = gzip.compress(b"".join(b"%d line\n" % i for i in range(5000)))
    broken = {
        "cut": data[: len(data) // 2],
        "plain": b"not gzip at all\n",
        "flipped": data[:200] + b"\x00\xff" * 20 + data[240:],
    }[damage]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: no whole gzip data after line"):
        read(path)


def test_the_same_data_give_the_same_gzip_bytes(tmp_path):
    write_bytes(tmp_path / "a.gz", b"text")
    write_bytes(tmp_path / "b.gz", b"text")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


MIB = 1 << 20
LONG_LINE = 64 * MIB


@pytest.fixture(scope="module", params=["a.jsonl", "a.jsonl.gz"])
def with_long_line(tmp_path_factory, request):
    """Three lines, the second of 64 MiB; as gzip some 300 kB."""
    data = b"first\n" + b"{" * LONG_LINE + b"\nlast\n"
    path = tmp_path_factory.mktemp("long") / request.param
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("skip", [False, True])
def test_a_line_has_a_limit(with_long_line, monkeypatch, skip):
    monkeypatch.setattr(lines, "LINE_BYTES", MIB)
    long = []
    tracemalloc.start()
    try:
        if skip:
            read = list(read_lines(with_long_line, on_long=lambda *given: long.append(given)))
        else:
            with pytest.raises(ValueError, match=r"a\.jsonl.*, line 2: more than 1,048,576 bytes"):
                list(read_lines(with_long_line))
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
    if skip:
        assert read == [(1, b"first"), (3, b"last")]
        ((line, reason),) = long
        assert line == 2
        assert "1,048,576 bytes" in reason
    assert count_lines(with_long_line) == 3


def test_a_line_of_just_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LINE_BYTES", 5)
    path = tmp_path / "a.txt"
    path.write_bytes(b"1234\n12345")
    assert [line for _, line in read_lines(path)] == [b"1234", b"12345"]
    path.write_bytes(b"12345\n")
    with pytest.raises(ValueError, match="line 1: more than 5 bytes"):
        list(read_lines(path))


@pytest.mark.parametrize(
    "read",
    [
        lambda path: list(read_documents(path)),
        lambda path: list(read_raw_lines(path)),
        read_qrels,
        read_run,
        read_examples,
    ],
)
def test_every_reader_of_lines_has_the_limit(tmp_path, monkeypatch, read):
    monkeypatch.setattr(lines, "LINE_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + b"1" * 200)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: more than 100 bytes"):
        read(path)


def test_a_long_line_is_a_bad_record(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LINE_BYTES", 100)
    path = tmp_path / "a.jsonl"
    records = [{"_id": str(i), "text": "t" * 40 * i} for i in range(1, 5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    bad = []
    assert [d.id for d in read_documents(path, on_bad=bad.append)] == ["1"]
    assert [(record.line, record.id) for record in bad] == [(2, None), (3, None), (4, None)]


@pytest.mark.parametrize("read", [read_text, read_config])
def test_a_file_that_is_read_as_a_whole_has_a_limit(tmp_path, monkeypatch, read):
    monkeypatch.setattr(lines, "FILE_BYTES", 10)
    path = tmp_path / "a.yaml"
    path.write_text("stage: rankt5\n")
    with pytest.raises(ValueError, match=r"a\.yaml has more than 10 bytes, the limit"):
        read(path)
    path.write_bytes(b"stage: \xff")
    with pytest.raises(ValueError, match="utf-8"):
        read(path)
