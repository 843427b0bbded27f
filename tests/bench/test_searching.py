"""Documents and queries to measure with."""

from __future__ import annotations

from e2rank_rag.bench.searching import dataset, first_documents, queries_of
from tests.kit import write_jsonl


def test_queries_are_different_even_where_the_dataset_has_fewer(tmp_path):
    (tmp_path / "qrels").mkdir()
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "a", "text": "cats purr"}])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "who?"}])
    (tmp_path / "qrels" / "test.tsv").write_text("q\ta\t1\n")
    asked = queries_of(str(tmp_path))
    assert [next(asked) for _ in range(3)] == ["who?", "1 who?", "2 who?"]
    assert [document.id for document in first_documents(str(tmp_path), 5)] == ["a"]


def test_scifact_is_the_dataset_of_old():
    assert dataset(None).name == "scifact"
    asked = queries_of(None)
    assert len({next(asked) for _ in range(2000)}) == 2000
