"""`e2rank report`: the page and the figures of small datasets, and wrong usage."""

from __future__ import annotations

import json
import shutil

import pytest

from e2rank_rag.models.encoder import Encoder


@pytest.fixture
def two(beir):
    """Two datasets: the second is a copy under another name."""
    other = beir.parent / "other"
    shutil.copytree(beir, other)
    return [beir, other]


def test_report_writes_a_page_and_its_figures(run, two, tmp_path, tiny_bert):
    page = tmp_path / "out" / "page.html"
    code, out, _ = run("report", *two, "--model", tiny_bert, "-o", page, "--without", "other")
    assert code == 0
    assert f"wrote {page} and {page.with_suffix('.json')}" in out
    record = json.loads(page.with_suffix(".json").read_text())
    assert [each["name"] for each in record["datasets"]] == ["small", "other"]
    assert record["model"] == str(tiny_bert)
    assert "other" in record["without"]
    for sentence in record["summary"]:
        assert sentence in out
    assert page.read_text().startswith("<!doctype html>")


def test_report_measures_some_queries_and_another_reranker(
    run, beir, tmp_path, tiny_bert, tiny_rankt5
):
    page, index = tmp_path / "page.html", tmp_path / "index"
    options = ["--queries", "1", "--language", "none", "--index", index]
    code, out, _ = run(
        "report", beir, "--model", tiny_bert, "--reranker", tiny_rankt5, *options, "-o", page
    )
    assert code == 0
    assert "Not all judged queries were measured: 1 of 2 on small" in out
    record = json.loads(page.with_suffix(".json").read_text())
    assert (record["subject"], record["against"]) == ("rerank", "retrieve")
    assert (record["reranker"], record["datasets"][0]["queries"]) == (str(tiny_rankt5), 1)
    assert index.is_dir()


def test_report_refuses_wrong_usage_before_a_model_is_opened(
    run, two, beir, tmp_path, tiny_bert, monkeypatch
):
    monkeypatch.setattr(Encoder, "from_pretrained", None)
    twin = tmp_path / "twin" / "small"
    shutil.copytree(beir, twin)
    for arguments, message in (
        ([beir, "-o", tmp_path / "page.txt"], "a file that ends in .html"),
        ([beir, twin], "two folders are named 'small'"),
        ([*two, "--without", "third"], "names of the datasets, small, other; got 'third'"),
        ([beir, "--queries", "0"], "'--queries'"),
        ([beir, "--system", "rankt5"], "--system describes a --reranker"),
    ):
        code, _, err = run("report", *arguments, "--model", tiny_bert)
        assert code == 2
        assert message in " ".join(err.replace("│", " ").split())
    code, _, err = run("report", beir, "--split", "dev", "--model", tiny_bert)
    assert code == 1
    assert "has no split 'dev'; there is: test" in err
