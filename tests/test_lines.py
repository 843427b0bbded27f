"""Lines come one by one, whatever is wrong with the file around them."""

import gzip

import pytest

from e2rank_rag.lines import count_lines, read_lines, write_bytes


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
