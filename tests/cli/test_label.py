"""`e2rank label` with a chat server and with a cross-encoder."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from e2rank_rag.training.examples import read_examples
from tests.chat_server import ChatServer, said
from tests.cli.parts import IDS, TEXTS
from tests.cross_encoders import write_bert_cross_encoder
from tests.kit import write_jsonl

LISTS = [
    {"query": f"q{n}", "documents": [f"{n} a", f"{n + 2} b", f"{n + 1} c"], "labels": [1, 0, 0]}
    for n in range(6)
]


@pytest.fixture
def lists(tmp_path):
    return write_jsonl(tmp_path / "lists.jsonl", LISTS)


def ask(server, *options):
    return ["--teacher", "m", "--endpoint", server.url, "--terms", "CC0 [x]", *options]


def test_label_writes_a_chat_models_orders_and_says_what_they_cost(run, lists, tmp_path):
    output = tmp_path / "out.jsonl"
    with ChatServer() as server:
        options = ask(server, "--limit", 4, "--document-words", 1)
        code, out, _ = run("label", lists, output, *options)
        assert code == 0
        assert out.splitlines() == [
            f"4 lists labelled, 0 were there before, in {output}",
            "2 left by --limit",
            "12 documents were longer than 1 words and were cut there",
            "400 prompt and 40 completion tokens",
        ]
        options = ask(server, "--document-words", 1)
        _, out, _ = run("label", lists, output, *options)
    assert out.startswith(f"2 lists labelled, 4 were there before, in {output}")
    assert len(server.asked) == 6
    examples = sorted(read_examples(output), key=lambda example: example.query)
    assert [example.labels for example in examples] == [(1, 3, 2)] * 6
    assert {example.positive for example in examples} == {0}
    assert json.loads(output.read_text().splitlines()[0])["teacher"]["terms"] == "CC0 [x]"


def test_label_counts_what_was_dropped_with_what_was_said(run, lists, tmp_path):
    def answer(asked):
        if asked.query == "q1":
            return 400, {"error": "[prompt] too long"}, {}
        return said("no" if asked.query in ("q2", "q3") else asked.best, usage=None)

    with ChatServer(answer) as server:
        options = ask(server, "--attempts", 2, "--concurrency", 1)
        code, out, _ = run("label", lists, tmp_path / "out.jsonl", *options)
    assert code == 0
    assert out.splitlines() == [
        f"3 lists labelled, 0 were there before, in {tmp_path / 'out.jsonl'}",
        "2 dropped: answer without a ranking; the first: no",
        '1 dropped: refused with status 400; the first: {"error": "[prompt] too long"}',
        "7 answers came without a count of their tokens",
    ]


@pytest.mark.usefixtures("interruptible")
def test_label_keeps_what_is_there_when_interrupted_and_goes_on(run, lists, tmp_path):
    def answer(asked):
        if asked.number == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return said(asked.best)

    output = tmp_path / "out.jsonl"
    with ChatServer(answer) as server:
        code, out, err = run("label", lists, output, *ask(server, "--concurrency", 1))
        assert code == 1
        assert "interrupted" in err
        assert out.startswith("3 lists labelled")
        assert len(output.read_text().splitlines()) == 3
        code, out, _ = run("label", lists, output, *ask(server, "--concurrency", 1))
    assert out.startswith("3 lists labelled, 3 were there before")
    assert sorted(example.query for example in read_examples(output)) == [f"q{n}" for n in range(6)]


def test_the_key_of_a_teacher_is_sent_and_shown_nowhere(run, lists, tmp_path, monkeypatch):
    key = "sk-0123456789-secret"
    monkeypatch.setenv("SOME_KEY", key)

    def answer(asked):
        if asked.number > 3:
            return 403, {"error": f"{key} has no more credit"}, {}
        return said(key if asked.number == 2 else asked.best)

    output = tmp_path / "out.jsonl"
    with ChatServer(answer) as server:
        options = ask(server, "--key-env", "SOME_KEY", "--attempts", 1, "--concurrency", 1)
        code, out, err = run("label", lists, output, *options, "--debug")
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {key}"}
    assert code == 1
    assert "1 dropped: answer without a ranking; the first: ***" in out
    assert "refused with status 403: {" + '"error": "*** has no more credit"}' in err
    assert "Traceback" in err
    assert key not in out + err + output.read_text()


def test_a_cross_encoder_labels_without_an_endpoint(run, beir, tmp_path):
    tiny_cross = write_bert_cross_encoder(tmp_path / "cross")
    lists = write_jsonl(
        tmp_path / "ids.jsonl", [{"query": "q", "ids": IDS, "labels": [1, 0, 0, 0]}]
    )
    output = tmp_path / "out.jsonl"
    options = ["--teacher", tiny_cross, "--corpus", beir / "corpus.jsonl.gz", "--list-size", 3]
    code, out, _ = run("label", lists, output, *options)
    assert code == 0
    assert out == f"1 lists labelled, 0 were there before, in {output}\n"
    record = json.loads(output.read_text())
    assert record["teacher"] == {"model": str(tiny_cross), "max_tokens": 64}
    assert (record["ids"], record["documents"]) == (IDS[:3], TEXTS[:3])
    assert sorted(record["ranking"]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--endpoint", "http://h/v1"], "--endpoint needs --terms"),
        (["--endpoint", "http://h/v1", "--device", "cpu"], "--device is for a cross-encoder"),
        (["--key-env", "X", "--seed", "1"], "key_env, seed"),
        (["--endpoint", "http://h/v1", "--body", "{"], "--body is not JSON"),
        (["--endpoint", "http://h/v1", "--body", "[]"], "--body must be a JSON object, got '[]'"),
    ],
)
def test_label_refuses_options_that_do_not_go_together(run, lists, tmp_path, options, message):
    code, _, err = run("label", lists, tmp_path / "out", "--teacher", "m", *options)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_label_says_nothing_of_counts_where_nothing_was_asked(run, lists, tmp_path):
    (tmp_path / "out").write_text("notes\n")
    with ChatServer() as server:
        code, out, err = run("label", lists, tmp_path / "out", *ask(server))
    assert (code, out) == (1, "")
    assert "out, line 1: not a list that a teacher labelled" in err
