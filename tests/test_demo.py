"""The demo runs from an empty folder to the table, and the second time from its index."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from e2rank_rag import demo
from e2rank_rag.data import shipped_collection
from e2rank_rag.demo import SHOWN_HITS, SHOWN_QUERIES, index_folder, run_demo
from e2rank_rag.evaluation.collections import Collection


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Five queries of SciFact, what is relevant to them, and twenty abstracts more."""
    whole = shipped_collection("scifact")
    queries = dict(list(whole.queries("test").items())[:5])
    qrels = {query: whole.qrels("test")[query] for query in queries}
    relevant = {id for grades in qrels.values() for id in grades}
    documents = list(whole.documents())
    kept = [d for d in documents if d.id in relevant] + documents[:20]
    folder = tmp_path_factory.mktemp("cut")
    (folder / "qrels").mkdir()
    records = {d.id: {"_id": d.id, "text": d.text, "metadata": dict(d.meta)} for d in kept}
    lines = [json.dumps(record) for record in records.values()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"_id": id, "text": text}) for id, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    lines = [f"{query}\t{id}\t{grade}" for query in qrels for id, grade in qrels[query].items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))
    return Collection.open(folder)


def said(small, folder, model):
    console = Console(file=io.StringIO(), width=140)
    run_demo(console, model=model, folder=folder, collection=small)
    return console.file.getvalue()


def unwrapped(text):
    return " ".join(text.split())


def test_the_demo_ends_with_the_table_and_reuses_its_index(small, tmp_path, tiny_bert):
    first = said(small, tmp_path / "index", str(tiny_bert))
    count = sum(1 for _ in small.documents())
    assert f"Indexed {count} documents in" in first
    assert f"{count} candidates reranked in" in first
    assert "no document was encoded" in first
    queries = list(small.queries("test").values())
    for query in queries[: len(SHOWN_QUERIES)]:
        assert query in unwrapped(first)
    table = first[first.rindex("system") :]
    assert "nDCG@10" in table
    assert [line.split("│")[1].strip() for line in table.splitlines() if "│" in line] == [
        "retrieve",
        "hybrid",
        "evidence",
        "listwise",
    ]
    assert f"The index holds all {count} documents." in said(
        small, tmp_path / "index", str(tiny_bert)
    )


def test_the_queries_that_are_shown_are_judged():
    assert set(SHOWN_QUERIES) <= set(shipped_collection("scifact").qrels("test"))
    assert SHOWN_HITS > 0


def test_the_index_is_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    assert index_folder() == tmp_path / "e2rank_rag" / "demo"


@pytest.mark.slow
def test_the_demo_on_the_whole_of_scifact(tmp_path):
    console = Console(file=io.StringIO(), width=140)
    run_demo(console, folder=tmp_path)
    text = console.file.getvalue()
    assert "Indexed 5,183 documents" in text
    retrieve = next(line for line in text.splitlines() if "retrieve" in line and "│" in line)
    # Published for all-MiniLM-L6-v2: 64.51.
    assert float(retrieve.split("│")[2]) == pytest.approx(64.5, abs=0.5)
