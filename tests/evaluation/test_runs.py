"""Runs and qrels survive their files, and a wrong line is named."""

import gzip
import re

import pytest

from e2rank_rag.evaluation.runs import (
    ranked_ids,
    read_qrels,
    read_run,
    run_from_rankings,
    write_run,
)
from e2rank_rag.types import Document, Hit

RUN = {"q1": {"b": 0.1 + 0.2, "a": 0.3, "c": -1e-300}, "q2": {"x": float("inf")}}


def hits(*pairs):
    return [Hit(Document(doc_id, "text"), score) for doc_id, score in pairs]


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_comes_back_as_it_was_written(tmp_path, name):
    write_run(RUN, tmp_path / name)
    assert read_run(tmp_path / name) == RUN


def test_a_run_is_written_in_trecs_six_columns_best_first(tmp_path):
    path = tmp_path / "run.trec"
    write_run({"q": {"a": 1, "b": 2.5}, "none": {}}, path, tag="mine")
    assert path.read_text() == "q Q0 b 1 2.5 mine\nq Q0 a 2 1.0 mine\n"


def test_ties_keep_their_order_through_a_file(tmp_path):
    path = tmp_path / "run.trec"
    write_run({"q": {"b": 1.0, "a": 1.0, "c": 1.0}}, path)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert list(read_run(path)["q"]) == ["b", "a", "c"]


def test_score_goes_before_the_rank_column(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 0.5 t\nq Q0 b 2 0.9 t\n")
    assert list(read_run(path)["q"]) == ["b", "a"]


def test_columns_may_be_parted_by_tabs_and_queries_interleaved(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q\tQ0\ta\t1\t2\tt\nr Q0 a 1 1 t\r\n\nq  Q0 b 2 1 t")
    assert read_run(path) == {"q": {"a": 2.0, "b": 1.0}, "r": {"a": 1.0}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q Q0 a 1 0.5", "expected the 6 columns .*, got 5"),
        ("q Q0 a b 1 0.5 t", "expected the 6 columns .*, got 7"),
        ("q Q0 b 2 high t", "the score must be a number, got 'high'"),
        ("q Q0 b 2 nan t", "the score must be a number, got 'nan'"),
        ("q Q0 b second 1 t", "the rank must be a whole number, got 'second'"),
        ("q Q0 a 2 0.1 t", "document 'a' is there twice for query 'q'"),
        ("q Q0 \udcff 2 0.1 t", "not UTF-8: byte 0xff"),
    ],
)
def test_a_wrong_line_of_a_run_is_named(tmp_path, line, reason):
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 a 1 0.5 t\n\n{line}\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"run\.trec, line 3: {reason}"):
        read_run(path)


@pytest.mark.parametrize("value", ["a b", "", "a\tb", " a", "a\n"])
@pytest.mark.parametrize(
    ("name", "run", "tag"),
    [
        ("a document id of query 'q'", lambda value: {"q": {"a": 2.0, value: 1.0}}, None),
        ("a query id", lambda value: {"q": {"a": 2.0}, value: {"a": 1.0}}, None),
        ("the tag", lambda value: {"q": {"a": 2.0}}, lambda value: value),
    ],
)
def test_white_space_in_a_column_is_refused_and_nothing_written(tmp_path, value, name, run, tag):
    path = tmp_path / "run.trec"
    message = f"{name} is {value!r}; a TREC run separates its columns by white space"
    with pytest.raises(ValueError, match=re.escape(message)):
        write_run(run(value), path, tag="e2rank" if tag is None else tag(value))
    assert not path.exists()


def test_a_no_break_space_is_no_separator(tmp_path):
    run = {"q": {"a\u00a0b": 1.0}}
    write_run(run, tmp_path / "run.trec")
    assert read_run(tmp_path / "run.trec") == run


def test_a_nan_score_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="is NaN"):
        write_run({"q": {"a": float("nan")}}, tmp_path / "run.trec")
    assert not (tmp_path / "run.trec").exists()


def test_a_run_from_rankings_says_the_order_and_nothing_else():
    run = run_from_rankings({"q": hits(("b", 0.1), ("a", 0.1), ("c", 7.0)), "none": []})
    assert run == {"q": {"b": 3.0, "a": 2.0, "c": 1.0}, "none": {}}
    assert ranked_ids("q", run["q"]) == ["b", "a", "c"]


def test_a_document_twice_in_a_ranking_is_refused():
    with pytest.raises(ValueError, match="document 'a' is twice in the ranking of query 'q'"):
        run_from_rankings({"q": hits(("a", 0.2), ("a", 0.1))})


QRELS = {"1": {"a": 2, "b": 0}, "2": {"a": -1}}


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n2\ta\t-1\n",
        "\ufeffquery_id\tcorpus_id\tlabel\r\n1\ta\t2\r\n\r\n1\tb\t0\r\n2\ta\t-1",
        "1\ta\t2\n1\tb\t0\n2\ta\t-1\n",
        "1 0 a 2\n1 0 b 0\n2 0 a -1\n",
        "1\tQ0\ta\t2\n1\tQ0\tb\t0\n2\tQ0\ta\t-1\n",
    ],
)
def test_every_form_of_qrels_is_read(tmp_path, text):
    path = tmp_path / "qrels"
    path.write_text(text, encoding="utf-8")
    assert read_qrels(path) == QRELS


def test_gzip_qrels_and_ids_with_spaces_are_read(tmp_path):
    path = tmp_path / "test.tsv.gz"
    path.write_bytes(gzip.compress(b"query-id\tcorpus-id\tscore\nq 1\td 1\t1\n"))
    assert read_qrels(path) == {"q 1": {"d 1": 1}}


def test_the_last_of_two_judgements_counts(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("q\ta\t0\nq\ta\t3\n")
    assert read_qrels(path) == {"q": {"a": 3}}


@pytest.mark.parametrize(
    ("first", "line", "reason"),
    [
        ("q\ta\t1", "q\tb", "expected 3 filled columns, got 2; qrels are"),
        ("q\ta\t1", "q\t\t1", "expected 3 filled columns, got 3"),
        ("q\ta\t1", "q 0 b 1", "expected 3 filled columns, got 1"),
        ("q\ta\t1", "q\tb\t1.5", "the grade must be a whole number, got '1.5'"),
        ("q 0 a 1", "q 0 b", "expected 4 columns, got 3"),
        ("q 0 a 1", "q 0 b x", "the grade must be a whole number, got 'x'"),
        ("q 0 a 1", "q\tb\t1", "expected 4 columns, got 3"),
        ("q\ta\t1", "q\t\udcff\t1", "not UTF-8"),
    ],
)
def test_a_wrong_line_of_qrels_is_named(tmp_path, first, line, reason):
    path = tmp_path / "test.tsv"
    path.write_text(f"{first}\n{line}\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"test\.tsv, line 2: {reason}"):
        read_qrels(path)
