"""`e2rank index` on a few documents: what it prints, what it writes, how it fails."""

from __future__ import annotations

import os
import re
import threading

import pytest

from e2rank_rag import lines
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store import QdrantStore
from e2rank_rag.words import Bm25
from tests.cli.parts import RECORDS, one_line
from tests.kit import ids, write_jsonl


def test_index_says_what_it_did(run, corpus, tmp_path, tiny_bert):
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert]
    code, out, err = run(*command)
    assert code == 0
    assert re.fullmatch(r"4 added in \d+\.\d s\n", out)
    assert "indexing: 0 of 4" in err
    write_jsonl(corpus, [{**RECORDS[0], "text": "other"}, {**RECORDS[1], "year": 1}, RECORDS[2]])
    _, out, _ = run(*command, "--prune")
    assert out.startswith("1 updated, 1 meta updated, 1 unchanged, 1 pruned in ")
    store = QdrantStore.open(tmp_path / "i", "documents")
    assert sorted(store.ids()) == ["cats", "dogs", "ferry"]
    assert store.model == str(tiny_bert)
    store.close()


def test_index_reads_a_pipe_once_and_prunes_nothing_from_it(run, corpus, tmp_path, tiny_bert):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ["index", pipe, "--index", tmp_path / "i", "--model", tiny_bert]
    writer = threading.Thread(target=pipe.write_bytes, args=(corpus.read_bytes(),))
    writer.start()
    code, out, err = run(*command)
    writer.join()
    assert (code, out.split(" in ")[0]) == (0, "4 added")
    assert "indexing: 0\n" in err
    code, _, err = run(*command, "--prune")
    assert code == 1
    assert "nothing is pruned" in err


def test_index_takes_gzip_and_beir_folders(run, beir, tmp_path, tiny_bert):
    for place, source in enumerate((beir, beir / "corpus.jsonl.gz")):
        options = ["--index", tmp_path / f"i{place}", "--model", tiny_bert, "--collection", "c"]
        code, out, _ = run("index", source, *options)
        assert (code, out.split(" in ")[0]) == (0, "4 added")


def test_index_says_how_many_were_cut(run, tmp_path, tiny_bert):
    corpus = write_jsonl(
        tmp_path / "c.jsonl", [{"_id": "a", "text": "cats purr " * 200}, RECORDS[1]]
    )
    _, out, _ = run("index", corpus, "--index", tmp_path / "i", "--model", tiny_bert)
    assert "1 documents were longer than 128 tokens and were cut there" in out


def test_bad_records_end_it_or_are_skipped_with_their_lines(run, tmp_path, tiny_bert):
    corpus = write_jsonl(tmp_path / "c.jsonl", [RECORDS[0], {"_id": "[b]", "text": ""}, RECORDS[0]])
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert]
    code, _, err = run(*command)
    assert code == 1
    assert f"error: {corpus}, line 2: no text" in err
    code, out, err = run(*command, "--skip-bad")
    assert code == 0
    assert "1 added, 2 skipped" in out
    assert "line 2: no text" in err
    assert "line 3: id 'cats' was given before; ids must be unique" in err


def test_skip_bad_skips_a_gzip_bomb_of_one_line(run, tmp_path, tiny_bert, monkeypatch):
    monkeypatch.setattr(lines, "LINE_BYTES", 1 << 20)
    corpus = write_jsonl(
        tmp_path / "c.jsonl.gz", [RECORDS[0], {"_id": "b", "text": "b" * (1 << 24)}]
    )
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert]
    code, _, err = run(*command)
    assert code == 1
    assert f"error: {corpus}, line 2: more than 1,048,576 bytes, the limit of a line" in err
    code, out, err = run(*command, "--skip-bad")
    assert (code, out.split(" in ")[0]) == (0, "1 added, 1 skipped")
    assert "line 2: more than 1,048,576 bytes" in err


@pytest.mark.parametrize(
    ("options", "language"),
    [([], "english"), (["--language", "german"], "german"), (["--language", "tamil"], "tamil")],
)
def test_a_new_index_holds_the_words_of_its_language(
    run, corpus, tmp_path, bert, options, language
):
    command = ["index", corpus, "--index", tmp_path / "i", "--model", bert.name]
    assert run(*command, *options)[0] == 0
    # Again without the option: it keeps its language.
    write_jsonl(corpus, [*RECORDS, {"_id": "new", "text": "die Katzen schnurren"}])
    assert run(*command)[1].startswith("1 added, 4 unchanged")
    assert run(*command, "--language", language)[1].startswith("5 unchanged")
    store = QdrantStore.open(tmp_path / "i", "documents")
    assert store.bm25.language == language
    assert [ids(hits) for hits in store.search_words_batch(["schnurren"], top_k=3)] == [["new"]]
    store.close()


def test_an_index_without_words_keeps_none(run, corpus, tmp_path, tiny_bert):
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert]
    assert run(*command, "--language", "none")[0] == 0
    for options in ([], ["--language", "none"]):
        assert run(*command, *options)[1].startswith("4 unchanged")
    store = QdrantStore.open(tmp_path / "i", "documents")
    assert store.bm25 is None
    store.close()


@pytest.mark.parametrize(
    ("first", "then", "holds"),
    [
        ("english", "none", "words in english"),
        ("english", "german", "words in english"),
    ],
)
def test_the_language_of_an_index_cannot_change(
    run, corpus, tmp_path, tiny_bert, first, then, holds
):
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert, "--language"]
    assert run(*command, first)[0] == 0
    code, _, err = run(*command, then)
    assert code == 1
    assert one_line(err)
    assert f"holds {holds}, which --language cannot change" in err
    code, out, _ = run(*command, then, "--collection", "other")
    assert (code, out.split(" in ")[0]) == (0, "4 added")


def test_an_index_without_words_gets_them_and_nothing_is_encoded(
    run, corpus, tmp_path, tiny_bert, monkeypatch
):
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert]
    assert run(*command, "--language", "none")[0] == 0

    def encode(*arguments, **options):
        raise AssertionError(arguments)

    monkeypatch.setattr(Encoder, "encode_documents", encode)
    code, out, _ = run(*command, "--language", "english")
    assert (code, out.split(" in ")[0]) == (0, "4 unchanged, 4 got words")
    assert run(*command)[1].startswith("4 unchanged in ")
    store = QdrantStore.open(tmp_path / "i", "documents")
    assert store.bm25 == Bm25()
    hits = store.search_words_batch(["barking ferries"], top_k=4)[0]
    assert sorted(ids(hits)) == ["dogs", "ferry"]
    store.close()


def test_an_unknown_language_is_wrong_usage(run, corpus, tmp_path):
    code, _, err = run("index", corpus, "--index", tmp_path / "i", "--language", "klingon")
    assert code == 2
    assert "--language takes none or one of arabic" in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "i").exists()
