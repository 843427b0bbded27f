"""How commands fail."""

from __future__ import annotations

import subprocess
import sys

import pytest
from qdrant_client import QdrantClient

from e2rank_rag.store import opening
from tests.cli.parts import one_line
from tests.kit import write_jsonl


def test_an_error_is_one_line_and_debug_anywhere_shows_where(run, tmp_path):
    command = ["search", "q", "--index", tmp_path / "nowhere"]
    code, out, err = run(*command)
    assert (code, out) == (1, "")
    assert one_line(err)
    assert f"no index at {tmp_path / 'nowhere'}; make one with `e2rank index`" in err
    for place in range(len(command) + 1):
        code, _, err = run(*command[:place], "--debug", *command[place:])
        assert code == 1
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("error: no index at ")


def test_the_module_ends_with_the_same_codes_as_the_command(tmp_path):
    command = [sys.executable, "-m", "e2rank_rag.cli", "search", "q", "--index", tmp_path / "no"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr)


def test_a_missing_model_folder(run, corpus, tmp_path):
    code, _, err = run("index", corpus, "--index", tmp_path / "i", "--model", "./no/such/model")
    assert code == 1
    assert one_line(err)
    assert "there is no model folder no/such/model" in err
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.safetensors", "the weights in"),
        ("config.json", "config"),
        ("tokenizer.json", "the tokenizer in"),
        ("modules.json", "modules.json"),
    ],
)
def test_a_corrupt_model_folder(run, corpus, tmp_path, tiny_bert, name, reason):
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_bert.rglob("*"):
        target = model / path.relative_to(tiny_bert)
        if path.is_file():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    (model / name).write_bytes(b"\x00garbage")
    code, _, err = run("index", corpus, "--index", tmp_path / "i", "--model", model)
    assert code == 1
    assert one_line(err)
    assert reason in err
    assert str(model) in err


def test_a_missing_source(run, tmp_path, tiny_bert):
    source = tmp_path / "no.jsonl"
    code, _, err = run("index", source, "--index", tmp_path / "i", "--model", tiny_bert)
    assert code == 1
    assert one_line(err)
    assert str(source) in err


def test_an_empty_query(run, filled, tiny_bert):
    for query in ("", " "):
        code, _, err = run("search", query, "--index", filled, "--model", tiny_bert)
        assert code == 1
        assert one_line(err)
        assert "query" in err


def test_an_empty_source(run, tmp_path, tiny_bert):
    corpus = write_jsonl(tmp_path / "c.jsonl", [])
    code, _, err = run("index", corpus, "--index", tmp_path / "i", "--model", tiny_bert)
    assert code == 1
    assert "error: there is nothing to index: the source has no document" in err


def test_a_locked_index(run, filled, tiny_bert):
    client = QdrantClient(path=str(filled))
    code, _, err = run("search", "q", "--index", filled, "--model", tiny_bert)
    client.close()
    assert code == 1
    assert one_line(err)
    assert f"{filled} is open already, in another process" in err


def test_a_read_only_index(run, filled, monkeypatch, tiny_bert):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(filled / "meta.json"))

    monkeypatch.setattr(opening, "FolderClient", refuse)
    code, _, err = run("search", "q", "--index", filled, "--model", tiny_bert)
    assert code == 1
    assert one_line(err)
    assert f"{filled} cannot be written" in err


def test_a_file_in_place_of_the_index_folder(run, corpus, tiny_bert):
    code, _, err = run("index", corpus, "--index", corpus, "--model", tiny_bert)
    assert code == 1
    assert f"{corpus} is no folder" in err


def test_a_wrong_collection_names_those_there_are(run, filled, tiny_bert):
    code, _, err = run(
        "search", "q", "--index", filled, "--collection", "news", "--model", tiny_bert
    )
    assert code == 1
    assert one_line(err)
    assert "collection 'news' is not there" in err
    assert "Collections that are there: 'documents'." in err


def test_a_collection_of_another_dimension(run, corpus, filled):
    code, _, err = run("index", corpus, "--index", filled, "--model", "minilm")
    assert code == 1
    assert one_line(err)
    assert "holds vectors of 32 dimensions, these have 384" in err
    code, _, err = run("search", "q", "--index", filled, "--model", "minilm")
    assert code == 1
    assert "holds vectors of 32 dimensions, minilm makes 384" in err


def test_a_collection_of_another_model(run, corpus, filled, saved_qwen3):
    code, _, err = run("index", corpus, "--index", filled, "--model", saved_qwen3)
    assert code == 1
    assert "was written by" in err
    code, _, err = run("search", "q", "--index", filled, "--model", saved_qwen3)
    assert code == 1
    assert "was written by another model" in err
