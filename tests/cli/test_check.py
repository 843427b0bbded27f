"""`e2rank check`: what it prints, its exit codes, and its report."""

from __future__ import annotations

import json

import pytest

from e2rank_rag.store import LANGCHAIN_LAYOUT
from e2rank_rag.types import Document
from tests.chat_server import ChatServer, said
from tests.checking import CONTENTS, DOCUMENTS, fill, turned
from tests.cli.parts import one_line
from tests.kit import write_jsonl


@pytest.fixture(scope="module")
def titled(tmp_path_factory, bert):
    folder = tmp_path_factory.mktemp("titled")
    texts = [f"{d.meta['title']}. {d.text}" for d in DOCUMENTS]
    fill(folder, bert.encode_documents(texts)).close()
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, bert):
    folder = tmp_path_factory.mktemp("foreign")
    numbered = [Document(str(n), d.text, d.meta) for n, d in enumerate(DOCUMENTS)]
    vectors = turned(bert.encode_documents(CONTENTS))
    fill(folder, vectors, documents=numbered, layout=LANGCHAIN_LAYOUT).close()
    return folder


@pytest.fixture
def queries(tmp_path):
    lines = [{"_id": "q1", "text": "which cats purr?"}, {"_id": "q2", "text": "any ferry?"}]
    return write_jsonl(tmp_path / "queries.jsonl", lines)


@pytest.fixture
def qrels(tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_text("q1\td6\t1\nq2\td0\t1\n")
    return path


def test_the_model_is_named_with_its_text_and_the_lines_to_paste(run, titled, tiny_bert):
    code, out, _ = run("check", titled, "--models", tiny_bert, "--no-measure")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "collection 'notes': 8 points, laid out by e2rank_rag"
    assert f"written by '{tiny_bert}'" in lines
    assert "  text: title in front of it, joined by '. '" in lines
    assert "  length: cut at 128 tokens" in lines
    assert "retriever = E2RankRetriever(vectorstore=store, k=10)" in lines
    assert lines.index("# haystack") < lines.index("# langchain")


def test_a_foreign_collection_is_refused_with_the_nearest_miss(run, foreign, tiny_bert, tmp_path):
    report = tmp_path / "report.json"
    code, out, _ = run("check", foreign, "--models", tiny_bert, "--json", report)
    assert code == 1
    assert "laid out by langchain-qdrant" in out
    assert "no model at hand wrote these vectors, and no guess is made: the nearest" in out
    assert "0 of 8 texts" in out
    assert "E2Rank" not in out
    found = json.loads(report.read_text())
    assert (found["model"], found["variant"], found["gain"]) == (None, None, None)
    assert found["tried"][0]["cosine_median"] < 0.3


def test_the_described_pipeline_fits_or_is_told_what_to_change(run, titled, tiny_bert):
    fits = ["--model", tiny_bert, "--meta-fields", "title", "--separator", ". ", "--no-measure"]
    code, out, _ = run("check", titled, "--models", tiny_bert, *fits)
    assert code == 0
    assert "the pipeline as described makes these vectors" in out
    code, out, _ = run("check", titled, "--model", tiny_bert, "--max-length", 64, "--no-measure")
    assert code == 1
    assert "set meta_fields_to_embed=['title'], embedding_separator='. '" in out
    assert "set max_length=128" in out


def test_a_separator_of_a_shell_is_a_line_break(run, titled, tiny_bert):
    options = ["--model", tiny_bert, "--meta-fields", "title", "--separator", r"\n"]
    code, out, _ = run("check", titled, *options, "--no-measure")
    assert code == 1
    assert r"title in front of the text, joined by '\n'; in the collection" in out


def test_own_queries_are_measured_with_their_judgements(
    run, titled, tiny_bert, queries, qrels, tmp_path
):
    report = tmp_path / "new" / "report.json"
    code, out, _ = run(
        *("check", titled, "--models", tiny_bert, "--json", report),
        *("--queries", queries, "--qrels", qrels),
    )
    assert code == 0
    assert "2 queries, judged by the qrels" in out
    found = json.loads(report.read_text())
    assert list(found["gain"]["systems"]) == ["retrieve", "hybrid", "evidence", "listwise"]
    assert found["gain"]["differences"]["hybrid"]["nDCG@10"]["against"] == "retrieve"
    assert found["variant"] == {
        "meta_fields": ["title"],
        "separator": ". ",
        "separators_alike": [". "],
        "prefix": "",
        "max_length": 128,
        "max_lengths_alike": [128],
        "truncate_dim": None,
    }
    assert set(found["programs"]) == {"haystack", "langchain"}


def test_made_up_queries_are_told_as_made_up(run, titled, tiny_bert):
    code, out, _ = run("check", titled, "--models", tiny_bert)
    assert code == 0
    assert "8 queries, MADE UP from the documents: such queries favour words" in out
    code, out, _ = run("check", titled, "--models", tiny_bert, "--language", "none")
    assert "hybrid was left out" in out


def test_a_judge_is_asked_for_own_queries_without_judgements(run, titled, tiny_bert, queries):
    def in_order(asked):
        return said(" > ".join(f"[{n}]" for n in asked.passages))

    with ChatServer(in_order) as server:
        code, out, _ = run(
            *("check", titled, "--models", tiny_bert, "--queries", queries),
            *("--endpoint", server.url, "--judge", "m"),
        )
    assert code == 0
    assert "nDCG@5" in out
    assert "2 queries, judged by a chat model that ordered the first 5 documents" in out
    assert {asked.body["model"] for asked in server.asked} == {"m"}


@pytest.mark.parametrize(
    ("options", "said_"),
    [
        (["--max-length", 64], "begins with its --model"),
        (["--qrels", "x"], "judge the --queries"),
        (["--queries", "x"], "needs judgements"),
        (["--queries", "x", "--endpoint", "http://x"], "belong together"),
        (["--queries", "x", "--qrels", "y", "--endpoint", "e", "--judge", "m"], "already"),
        (["--queries", "x", "--qrels", "y", "--key-env", "K"], "names the key"),
        (["--language", "klingon"], "--language takes none or one of"),
    ],
)
def test_options_that_do_not_belong_together_are_wrong_usage(run, titled, options, said_):
    code, _, err = run("check", titled, *options)
    assert code == 2
    assert said_ in " ".join(err.replace("│", " ").split())


def test_a_report_that_could_not_be_written_is_an_error_at_once(run, titled, tmp_path):
    code, out, err = run("check", titled, "--json", tmp_path)
    assert (code, out, one_line(err)) == (1, "", True)
    assert "is a folder" in err


def test_a_missing_index_is_an_error_of_one_line(run, tmp_path):
    code, _, err = run("check", tmp_path / "none")
    assert (code, one_line(err)) == (1, True)
