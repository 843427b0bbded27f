"""Training files are read as they are meant, and bad lines are named."""

from __future__ import annotations

import gzip
import json

import pytest

from e2rank_rag.training.examples import read_examples, write_examples
from e2rank_rag.types import RankingExample


def written(folder, *records, name="lists.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_graded_lists_are_read(tmp_path):
    record = {"query": "q", "documents": ["a", "b"], "labels": [2, 0.5], "ids": ["1", "2"]}
    (example,) = read_examples(written(tmp_path, {**record, "task": "web", "other": None}))
    assert example == RankingExample("q", ("a", "b"), (2.0, 0.5), ("1", "2"), "web")


def test_the_released_form_is_read_a_permutation_from_one_best_first(tmp_path):
    record = {"query": "q", "document": ["a", "b", "c"], "ranking": [3, 1, 2], "source": "nq"}
    (example,) = read_examples(written(tmp_path, record))
    assert dict(zip(example.documents, example.labels, strict=True)) == {"c": 3, "a": 2, "b": 1}
    assert example.positive is None


def test_labels_beside_a_ranking_name_the_known_positive(tmp_path):
    record = {"query": "q", "documents": ["a", "b", "c"], "ranking": [3, 1, 2], "labels": [0, 1, 0]}
    (example,) = read_examples(written(tmp_path, record))
    assert example.labels == (2.0, 1.0, 3.0)
    assert example.positive == 1


@pytest.mark.parametrize(
    ("record", "documents", "labels"),
    [
        ({"pos": "a"}, ("a",), (1,)),
        ({"positive": "a", "negative": "b"}, ("a", "b"), (1, 0)),
        ({"positives": ["a", "b"], "neg": ["c", "d"]}, ("a", "b", "c", "d"), (1, 1, 0, 0)),
    ],
)
def test_pairs_and_triples_are_lists_of_positives_and_negatives(
    tmp_path, record, documents, labels
):
    (example,) = read_examples(written(tmp_path, {"query": "q", **record}))
    assert (example.documents, example.labels) == (documents, labels)


def test_ids_alone_take_their_texts_from_the_corpus(tmp_path):
    path = written(tmp_path, {"query": "q", "ids": ["2", "1"], "labels": [1, 0]})
    (example,) = read_examples(path, corpus={"1": "one", "2": "two"})
    assert example.documents == ("two", "one")
    with pytest.raises(ValueError, match=r"line 1: the corpus lacks 1 of the ids, among them '2'"):
        read_examples(path, corpus={"1": "one"})
    with pytest.raises(ValueError, match="line 1: the line holds ids only; name the corpus"):
        read_examples(path)


def test_equal_texts_are_held_once(tmp_path):
    first, second = read_examples(
        written(tmp_path, *[{"query": q, "pos": "the same text"} for q in "ab"])
    )
    assert first.documents[0] is second.documents[0]


GOOD = {"query": "q", "documents": ["a", "b"], "labels": [1, 0]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": " "}, "query is empty"),
        ({"query": None}, "query: Input should be a valid string"),
        ({"documents": ["a", ""]}, "document 1 is empty"),
        ({"documents": ["a", 7]}, "documents.1: Input should be a valid string"),
        ({"documents": None}, "no documents: expected documents, ids, or pos"),
        ({"labels": [1]}, "2 documents came with 1 labels"),
        ({"labels": None}, "no labels: expected labels, a ranking, or pos and neg"),
        ({"labels": [0, -1]}, "no document has a label above 0; a list needs a positive"),
        ({"ids": ["1"]}, "2 documents came with 1 ids"),
        ({"ranking": [2, 2]}, "ranking is no permutation of 1 to 2"),
        ({"ranking": [0, 1]}, "ranking is no permutation of 1 to 2"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path, change, reason):
    path = written(tmp_path, GOOD, {**GOOD, **change})
    with pytest.raises(ValueError, match="line 2") as caught:
        read_examples(path)
    assert str(caught.value) == f"{path}, line 2: {reason}"


@pytest.mark.parametrize("line", [b"{", b"[]", b"\xff", b'{"query": "q", "labels": [NaN]}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "lists.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"lists.jsonl, line 2: "):
        read_examples(path)


def test_an_infinite_label_is_refused(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text('{"query": "q", "documents": ["a", "b"], "labels": [1e999, 0]}\n')
    with pytest.raises(ValueError, match=r"line 1: .*finite"):
        read_examples(path)


def test_a_file_without_examples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no example"):
        read_examples(written(tmp_path))


@pytest.mark.parametrize("name", ["lists.jsonl", "lists.jsonl.gz"])
def test_what_is_written_is_read_again(tmp_path, name):
    examples = [
        RankingExample("q", ("a", "ü"), (2.0, 0.5), ("1", "2"), "web"),
        RankingExample("r", ("c",), (1.0,)),
    ]
    write_examples(tmp_path / name, examples)
    assert read_examples(tmp_path / name) == examples
    if name.endswith(".gz"):
        assert gzip.decompress((tmp_path / name).read_bytes()).startswith(b'{"query": "q"')


def test_an_order_and_what_people_judged_are_written_and_read_again(tmp_path):
    record = {"query": "q", "documents": ["a", "b", "c"], "ranking": [3, 1, 2], "source": "nq"}
    examples = read_examples(written(tmp_path, record, {**record, "labels": [1, 0, 2]}))
    assert [example.judged for example in examples] == [(), (1.0, 0.0, 2.0)]
    assert [example.positive for example in examples] == [None, 2]
    write_examples(tmp_path / "again.jsonl", examples)
    assert read_examples(tmp_path / "again.jsonl") == examples


def test_ids_may_be_written_in_place_of_texts(tmp_path):
    example = RankingExample("q", ("one", "two"), (1.0, 0.0), ("1", "2"))
    write_examples(tmp_path / "lists.jsonl", [example], texts=False)
    assert "one" not in (tmp_path / "lists.jsonl").read_text()
    assert read_examples(tmp_path / "lists.jsonl", corpus={"1": "one", "2": "two"}) == [example]
    with pytest.raises(ValueError, match="have no ids; write texts"):
        write_examples(tmp_path / "x", [RankingExample("q", ("a",), (1.0,))], texts=False)
