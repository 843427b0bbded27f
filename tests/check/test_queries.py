"""Queries come from a file with judgements, or are made of documents by a seed."""

from __future__ import annotations

import pytest

from e2rank_rag.check.queries import MADE_UP, made_up, own_queries
from e2rank_rag.check.sample import StoredText
from tests.checking import DOCUMENTS
from tests.kit import write_jsonl


def stored(document, fields):
    return StoredText(document.id, document.text, fields, None, 1.0, {})


@pytest.fixture
def file(tmp_path):
    return write_jsonl(
        tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(3)]
    )


def test_with_qrels_the_judged_queries_are_taken_and_the_others_counted(file, tmp_path):
    qrels = tmp_path / "qrels.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\nq2\td2\t2\n")
    found = own_queries(file, qrels)
    assert list(found.texts) == ["q0", "q2"]
    assert found.qrels == {"q0": {"d1": 1}, "q2": {"d2": 2}}
    assert (found.judged, found.left_out) == ("qrels", 1)


def test_without_qrels_a_judge_is_needed(file):
    found = own_queries(file, None)
    assert (len(found.texts), found.judged, found.qrels) == (3, "judge", {})


@pytest.mark.parametrize(
    ("lines", "qrels", "said"),
    [
        ([], None, "holds no query"),
        ([{"_id": "a", "text": "x"}] * 2, None, "line 2: query id 'a' is there twice"),
        ([{"_id": "a", "text": "x"}], "b\td\t1\n", "judges none of the 1 queries .*'a'"),
    ],
)
def test_useless_files_are_errors(tmp_path, lines, qrels, said):
    queries = write_jsonl(tmp_path / "q.jsonl", lines)
    path = None
    if qrels is not None:
        path = tmp_path / "qrels.tsv"
        path.write_text(qrels)
    with pytest.raises(ValueError, match=said):
        own_queries(queries, path)


def test_a_made_up_query_is_a_title_or_a_sentence_and_finds_its_document():
    titled = [stored(d, {"title": d.meta["title"]}) for d in DOCUMENTS]
    found = made_up(titled, seed=0)
    assert sorted(found.texts.values()) == sorted(d.meta["title"] for d in DOCUMENTS)
    bare = [stored(d, {}) for d in DOCUMENTS]
    found = made_up(bare, seed=0)
    by_id = {d.id: d.text for d in DOCUMENTS}
    for query, text in found.texts.items():
        ((document, grade),) = found.qrels[query].items()
        assert grade == 1
        assert text in by_id[document]
    assert made_up(bare, seed=0) == found != made_up(bare, seed=1)


def test_at_most_so_many_are_made():
    many = [stored(d, {"title": f"{n}"}) for n in range(20) for d in DOCUMENTS]
    assert len(made_up(many, seed=0).texts) == MADE_UP
