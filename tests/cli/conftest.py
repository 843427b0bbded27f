"""Runs `e2rank` in the process of the test, on a small corpus, index and collection."""

from __future__ import annotations

import re
import sys

import pytest
from rich.console import Console
from typer import rich_utils

from e2rank_rag import cli, terminal
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document
from tests.cli.parts import IDS, QUERIES, RECORDS, TEXTS
from tests.kit import write_jsonl

# typer prints colours in some environments.
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def run(monkeypatch, capsys):
    """`e2rank ...` in this process: exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["e2rank", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = (ANSI.sub("", text) for text in capsys.readouterr())
        return exit.value.code or 0, *captured

    # Whatever the environment says about colours and width.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(terminal, "out", Console(force_terminal=False, width=200))
    monkeypatch.setattr(terminal, "err", Console(stderr=True, force_terminal=False, width=200))
    return run


@pytest.fixture
def run_raw(capsys):
    """`e2rank ...` in this process: stdout and stderr as a terminal without colours gets them."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["e2rank", *map(str, arguments)])
            patch.setattr(terminal, "out", Console(color_system=None, width=200))
            patch.setattr(terminal, "err", Console(stderr=True, color_system=None, width=200))
            patch.setattr(rich_utils, "COLOR_SYSTEM", None)
            capsys.readouterr()
            with pytest.raises(SystemExit):
                cli.main()
        return capsys.readouterr()

    return run


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", RECORDS)


@pytest.fixture(scope="module")
def filled(tmp_path_factory, bert, tiny_bert):
    """An index of the four documents, as `e2rank index` writes it; open for reading only."""
    folder = tmp_path_factory.mktemp("filled")
    store = QdrantStore.open(folder, "documents")
    store.prepare(bert.dim, fingerprint=bert.fingerprint, model=str(tiny_bert))
    keys = ("year", "kind", "title")
    documents = [
        Document(id, text, {key: record[key] for key in keys if key in record})
        for id, text, record in zip(IDS, TEXTS, RECORDS, strict=True)
    ]
    store.upsert(documents, bert.encode_documents(TEXTS))
    store.close()
    return folder


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl.gz", RECORDS)
    write_jsonl(
        folder / "queries.jsonl", [{"_id": id, "text": text} for id, text in QUERIES.items()]
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\tcats\t1\nq2\tferry\t1\n"
    )
    return folder


@pytest.fixture(scope="module")
def saved_qwen3(qwen3, tmp_path_factory):
    return qwen3.save(tmp_path_factory.mktemp("saved") / "tiny-e2rank")
