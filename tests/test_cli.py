"""Every command on a few documents: what it prints, what it writes, how it fails."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from rich.console import Console
from typer import rich_utils

from e2rank_rag import cli, lines
from e2rank_rag.errors import StoreError
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import read_run
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import load_reranker
from e2rank_rag.store import QdrantStore, opening
from e2rank_rag.training.examples import read_examples
from e2rank_rag.types import Document
from e2rank_rag.verify import TOLERANCE
from tests.chat_server import ChatServer, said
from tests.cross_encoders import write_bert_cross_encoder

RECORDS = [
    {"_id": "cats", "text": "cats purr, cats sleep, cats purr again", "year": 2001, "kind": "pet"},
    {"_id": "dogs", "text": "dogs bark, dogs dig, dogs bark again", "year": 2005, "kind": "pet"},
    {"_id": "ferry", "title": "Ferries", "text": "A ferry crosses the strait.", "year": 2010},
    {"_id": "bread", "text": "Bread rises because yeast turns sugar into gas.", "kind": "food"},
]
IDS = [record["_id"] for record in RECORDS]
TEXTS = ["Ferries " + r["text"] if "title" in r else r["text"] for r in RECORDS]
# Of typer, which some surroundings make print colours.
ANSI = re.compile(r"\x1b\[[0-9;]*m")
QUERIES = {"q1": "Which animals purr?", "q2": "When does the ferry cross?"}


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

    # Whatever the surroundings say of colours and width.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli, "out", Console(force_terminal=False, width=200))
    monkeypatch.setattr(cli, "err", Console(stderr=True, force_terminal=False, width=200))
    return run


@pytest.fixture
def run_raw(capsys):
    """`e2rank ...` in this process: stdout and stderr as a terminal without colours gets them."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["e2rank", *map(str, arguments)])
            patch.setattr(cli, "out", Console(color_system=None, width=200))
            patch.setattr(cli, "err", Console(stderr=True, color_system=None, width=200))
            patch.setattr(rich_utils, "COLOR_SYSTEM", None)
            capsys.readouterr()
            with pytest.raises(SystemExit):
                cli.main()
        return capsys.readouterr()

    return run


def jsonl(path, records):
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def corpus(tmp_path):
    return jsonl(tmp_path / "corpus.jsonl", RECORDS)


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
    jsonl(folder / "corpus.jsonl.gz", RECORDS)
    jsonl(folder / "queries.jsonl", [{"_id": id, "text": text} for id, text in QUERIES.items()])
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\tcats\t1\nq2\tferry\t1\n"
    )
    return folder


def found(output):
    return [record["id"] for record in json.loads(output)]


# Help and usage


@pytest.mark.parametrize("command", ["demo", "index", "search", "evaluate", "verify", "label"])
def test_every_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Usage: e2rank {command}" in out
    code, out, _ = run("--help")
    assert code == 0
    assert command in out
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage." in out


def test_help_needs_no_torch():
    script = (
        "import sys; from e2rank_rag.cli import main; sys.argv = ['e2rank', '--help']\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'transformers', 'qdrant_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["search"],
        ["search", "q"],
        ["search", "q", "--index", "i", "--top-k", "0"],
        ["search", "q", "--index", "i", "--expand", "--no-rerank"],
        ["search", "q", "--index", "i", "--filter", "year"],
        ["evaluate", "folder", "--systems", "bm25"],
        ["evaluate", "folder", "--systems", ","],
        ["evaluate", "folder", "--measures", "nDCG@5,accuracy"],
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert "Traceback" not in err


# index


def test_index_says_what_it_did(run, corpus, tmp_path, tiny_bert):
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert]
    code, out, err = run(*command)
    assert code == 0
    assert re.fullmatch(r"4 added in \d+\.\d s\n", out)
    assert "indexing: 0 of 4" in err
    jsonl(corpus, [{**RECORDS[0], "text": "other"}, {**RECORDS[1], "year": 1}, RECORDS[2]])
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
    assert "nothing can be pruned from it" in err


def test_index_takes_gzip_and_beir_folders(run, beir, tmp_path, tiny_bert):
    for place, source in enumerate((beir, beir / "corpus.jsonl.gz")):
        options = ["--index", tmp_path / f"i{place}", "--model", tiny_bert, "--collection", "c"]
        code, out, _ = run("index", source, *options)
        assert (code, out.split(" in ")[0]) == (0, "4 added")


def test_index_says_how_many_were_cut(run, tmp_path, tiny_bert):
    corpus = jsonl(tmp_path / "c.jsonl", [{"_id": "a", "text": "cats purr " * 200}, RECORDS[1]])
    _, out, _ = run("index", corpus, "--index", tmp_path / "i", "--model", tiny_bert)
    assert "1 documents were longer than 128 tokens and were cut there" in out


def test_bad_records_end_it_or_are_skipped_with_their_lines(run, tmp_path, tiny_bert):
    corpus = jsonl(tmp_path / "c.jsonl", [RECORDS[0], {"_id": "[b]", "text": ""}, RECORDS[0]])
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
    corpus = jsonl(tmp_path / "c.jsonl.gz", [RECORDS[0], {"_id": "b", "text": "b" * (1 << 24)}])
    command = ["index", corpus, "--index", tmp_path / "i", "--model", tiny_bert]
    code, _, err = run(*command)
    assert code == 1
    assert f"error: {corpus}, line 2: more than 1,048,576 bytes, the limit of a line" in err
    code, out, err = run(*command, "--skip-bad")
    assert (code, out.split(" in ")[0]) == (0, "1 added, 1 skipped")
    assert "line 2: more than 1,048,576 bytes" in err


# search


def test_search_shows_a_table(run, filled, tiny_bert):
    code, out, _ = run("search", "animals [that] purr", "--index", filled, "--model", tiny_bert)
    assert code == 0
    assert "animals [that] purr" in out
    assert all(id in out for id in IDS)


def test_search_gives_json(run, filled, tiny_bert):
    options = ["--index", filled, "--model", tiny_bert, "--json", "--top-k", 3]
    code, out, _ = run("search", "animals that purr", *options)
    assert code == 0
    records = json.loads(out)
    assert len(records) == 3
    scores = [record["score"] for record in records]
    assert scores == sorted(scores, reverse=True)
    for record in records:
        assert list(record) == ["id", "score", "text", "meta"]
        assert record["text"] == TEXTS[IDS.index(record["id"])]
    assert all(type(score) is float for score in scores)


def test_without_model_an_index_of_a_model_that_ships_is_searched_with_it(run, corpus, tmp_path):
    index = tmp_path / "index"
    assert run("index", corpus, "--index", index, "--model", "minilm")[0] == 0
    code, out, _ = run("search", "animals that purr", "--index", index, "--json")
    assert (code, found(out)[0]) == (0, "cats")


@pytest.mark.parametrize(
    "recorded", ["someone/model", "./cats", "/tmp/cats", "../e2rank-minilm", "MINILM", "a 'b'; c"]
)
def test_search_without_model_opens_only_what_is_known_to_be_harmless(
    run, tmp_path, monkeypatch, recorded
):
    def opened(*arguments, **options):
        raise AssertionError(f"a model was opened: {arguments}")

    monkeypatch.setattr(Encoder, "from_pretrained", opened)
    monkeypatch.setattr(cli, "system_of", opened)
    store = QdrantStore.open(tmp_path / "index", "documents")
    store.prepare(4, fingerprint="f", model=recorded)
    store.close()
    command = ["search", "q", "--index", tmp_path / "index"]
    for options in ([], ["--no-rerank"], ["--expand"]):
        code, _, err = run(*command, *options)
        assert code == 1
        assert one_line(err)
        assert "says that" in err
        added = shlex.split(err.split("if you trust it, add: ")[1])
        assert added == ["--model", recorded]


@pytest.mark.parametrize("location", ["HTTP://localhost:1", "https://localhost:1"])
@pytest.mark.parametrize("command", ["search", "index", "evaluate"])
def test_the_api_key_is_never_dropped(run, corpus, beir, tiny_bert, monkeypatch, location, command):
    keys = []

    def opened(location, collection, *, api_key):
        keys.append(api_key)
        raise StoreError("enough")

    monkeypatch.setattr(QdrantStore, "open", opened)
    source = {"search": "q", "index": corpus, "evaluate": beir}[command]
    options = ["--index", location, "--model", tiny_bert]
    run(command, source, *options, "--api-key", "secret")
    monkeypatch.setenv("QDRANT_API_KEY", "from outside")
    run(command, source, *options)
    run(command, source, "--index", "./folder", "--model", tiny_bert)
    assert keys == ["secret", "from outside"] + [None] * (command != "search")


@pytest.mark.parametrize("command", ["search", "index"])
@pytest.mark.parametrize("location", ["htp://host", "http:/host", "https:host", "localhost:6333/"])
def test_an_address_with_a_wrong_scheme_is_no_folder(
    run, corpus, tmp_path, tiny_bert, monkeypatch, command, location
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, err = run(command, corpus, "--index", location, "--model", tiny_bert)
    assert code == 1
    assert "a URL that begins with http:// or https://" in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_api_key_for_a_folder_is_an_error(run, filled, tiny_bert):
    options = ["--index", filled, "--model", tiny_bert]
    code, _, err = run("search", "q", *options, "--api-key", "secret")
    assert code == 1
    assert "api_key is for servers" in err


def test_no_rerank_is_the_querys_own_cosine(run, filled, bert, tiny_bert):
    query = "animals that purr"
    _, out, _ = run(
        "search", query, "--index", filled, "--model", tiny_bert, "--json", "--no-rerank"
    )
    cosines = bert.encode_documents(TEXTS) @ bert.encode_queries([query])[0]
    by_hand = [IDS[i] for i in np.argsort(-cosines)]
    assert found(out) == by_hand
    scores = [record["score"] for record in json.loads(out)]
    assert scores == pytest.approx(sorted(cosines.tolist(), reverse=True), abs=1e-5)


def test_rerank_is_the_listwise_cosine(run, filled, bert, tiny_bert):
    query = "animals that purr"
    documents = bert.encode_documents(TEXTS)
    first = np.argsort(-(documents @ bert.encode_queries([query])[0]))
    better = bert.encode_listwise([query], [[TEXTS[i] for i in first]]).embeddings[0]
    by_hand = [IDS[i] for i in np.argsort(-(documents @ better))]
    for options in ([], ["--expand"]):
        _, out, _ = run(
            "search", query, "--index", filled, "--model", tiny_bert, "--json", *options
        )
        assert found(out) == by_hand


def test_expand_searches_again(run, filled, tiny_bert):
    options = [
        "--index",
        filled,
        "--model",
        tiny_bert,
        "--json",
        "--top-k",
        "2",
        "--retrieve-k",
        "2",
    ]
    _, out, _ = run("search", "animals that purr", *options, "--expand")
    assert len(found(out)) == 2


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["kind=pet"], ["cats", "dogs"]),
        (["kind=pet", "kind=food"], ["bread", "cats", "dogs"]),
        (["year>=2005"], ["dogs", "ferry"]),
        (["year>2001", "year<2010"], ["dogs"]),
        (["year=2001"], ["cats"]),
        (['year="2001"'], []),
        (["kind=pet", "year<2005"], ["cats"]),
        (["title=Ferries"], ["ferry"]),
    ],
)
def test_filters_limit_what_is_found(run, filled, filters, ids, tiny_bert):
    options = [part for condition in filters for part in ("--filter", condition)]
    code, out, _ = run(
        "search", "q", "--index", filled, "--model", tiny_bert, "--json", "--no-rerank", *options
    )
    assert (code, sorted(found(out))) == (0, ids)


def ranked_by(folder, reranker, query):
    """What the library finds, with the index's own model."""
    with load_reranker(reranker) as core:
        store = QdrantStore.open(folder, "documents")
        with Encoder.from_pretrained(store.model) as encoder:
            hits = SearchPipeline(encoder, store, core).search(query)
        store.close()
    return [hit.document.id for hit in hits], [hit.score for hit in hits]


def test_a_resrank_indexes_searches_and_reranks(run, corpus, tmp_path, tiny_resrank, tiny_bert):
    index = tmp_path / "index"
    assert run("index", corpus, "--index", index, "--model", tiny_resrank)[0] == 0
    query = "animals that purr"
    expected = ranked_by(index, tiny_resrank, query)
    for options in (["--model", tiny_resrank], ["--model", tiny_bert, "--reranker", tiny_resrank]):
        _, out, _ = run("search", query, "--index", index, "--json", *options)
        assert found(out) == expected[0]
        given = [record["score"] for record in json.loads(out)]
        assert given == pytest.approx(expected[1], abs=1e-5)


def test_another_model_reranks_what_was_found(run, filled, tmp_path, tiny_rankt5, tiny_bert):
    query = "animals that purr"
    _, out, _ = run(
        "search",
        query,
        "--index",
        filled,
        "--model",
        tiny_bert,
        "--json",
        "--reranker",
        tiny_rankt5,
    )
    assert found(out) == ranked_by(filled, tiny_rankt5, query)[0]
    cross = write_bert_cross_encoder(tmp_path / "cross")
    search = [
        "search",
        query,
        "--index",
        filled,
        "--model",
        tiny_bert,
        "--json",
        "--reranker",
        cross,
    ]
    code, out, _ = run(*search, "--system", "rankt5")
    assert (code, sorted(found(out))) == (0, sorted(IDS))
    code, _, err = run(*search)
    assert code == 1
    assert "says nowhere how it encodes" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expand"], "(rankt5) has none"),
        (["--no-rerank"], "--reranker reranks; drop --no-rerank"),
        (["--system", "bm25"], "--system takes one of e2rank, resrank, rankt5, got 'bm25'"),
    ],
)
def test_search_refuses_what_a_reranker_cannot_do(
    run, filled, tiny_rankt5, options, message, tiny_bert
):
    code, _, err = run(
        "search", "q", "--index", filled, "--model", tiny_bert, "--reranker", tiny_rankt5, *options
    )
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    code, _, err = run("search", "q", "--index", filled, "--model", tiny_bert, "--system", "rankt5")
    assert code == 2
    assert "--system is of a --reranker" in err


# evaluate


def test_evaluate_measures_a_reranker_beside_its_retrieval(
    run, beir, tmp_path, tiny_bert, tiny_resrank, tiny_rankt5
):
    figures = tmp_path / "figures.json"
    options = ["--measures", "nDCG@5, MRR@10,nDCG(gains={0:0,1:3})@10", "--json", figures]
    measures = ["nDCG@5", "MRR@10", "nDCG(gains={0:0,1:3})@10", "seconds_per_query"]
    by_rankt5 = ["--model", tiny_bert, "--reranker", tiny_rankt5]
    for models, reranker in ((by_rankt5, str(tiny_rankt5)), (["--model", tiny_resrank], None)):
        code, out, _ = run("evaluate", beir, *models, *options)
        assert code == 0
        record = json.loads(figures.read_text())
        assert record.get("reranker") == reranker
        assert (f", reranked by {reranker}" in " ".join(out.split())) is (reranker is not None)
        assert list(record["systems"]) == ["retrieve", "rocchio", "rerank"]
        assert all(list(values) == measures for values in record["systems"].values())
    code, _, _ = run("evaluate", beir, "--systems", "rerank,listwise", *by_rankt5, *options)
    assert code == 0
    assert list(json.loads(figures.read_text())["systems"]) == ["rerank", "listwise"]


def test_an_empty_query_ends_evaluate_or_counts_as_zero_and_is_said(run, beir, tmp_path, tiny_bert):
    command = ["evaluate", beir, "--model", tiny_bert, "--systems", "retrieve"]
    jsonl(beir / "queries.jsonl", [{"_id": "q1", "text": QUERIES["q1"]}])
    (beir / "qrels" / "half.tsv").write_text("q1\tcats\t1\n")
    half, whole = tmp_path / "half.json", tmp_path / "whole.json"
    assert run(*command, "--split", "half", "--json", half)[0] == 0

    jsonl(
        beir / "queries.jsonl", [{"_id": "q1", "text": QUERIES["q1"]}, {"_id": "q2", "text": " "}]
    )
    code, _, err = run(*command)
    assert code == 1
    assert f"error: {beir / 'queries.jsonl'}, line 2: no text" in err
    runs = tmp_path / "runs"
    code, out, err = run(*command, "--skip-bad", "--json", whole, "--run-dir", runs)
    assert code == 0
    assert "line 2: no text" in err
    assert "small test, 2 queries" in out
    assert "1 of the queries could not be read and count as zero" in out
    record = json.loads(whole.read_text())
    assert record["unread_queries"] == ["q2"]
    alone = json.loads(half.read_text())["systems"]["retrieve"]
    for measure in ("nDCG@10", "R@100", "RR@10"):
        assert alone[measure] > 0
        assert record["systems"]["retrieve"][measure] == pytest.approx(alone[measure] / 2)
    assert set(read_run(runs / "small.test.retrieve.trec")) == {"q1"}


def test_evaluate_says_for_how_many_queries_their_own_document_was_left_out(run, beir, tiny_bert):
    own = [{"_id": id, "text": f"  {text}"} for id, text in QUERIES.items()]
    jsonl(beir / "corpus.jsonl.gz", [*RECORDS, *own])
    code, out, _ = run("evaluate", beir, "--model", tiny_bert, "--systems", "retrieve")
    assert code == 0
    assert "2 queries are documents of the collection themselves" in out


def test_evaluate_refuses_systems_that_the_models_do_not_make(run, beir, tiny_bert, tiny_rankt5):
    both = ["--model", tiny_bert, "--reranker", tiny_rankt5]
    for options, message in (
        (["--model", tiny_bert, "--systems", "rerank"], "--systems rerank needs a --reranker"),
        ([*both, "--systems", "listwise"], "the system rerank, which --systems leaves out"),
        ([*both, "--expand"], "(rankt5) has none"),
    ):
        code, _, err = run("evaluate", beir, *options)
        assert code == 2
        assert message in " ".join(err.replace("│", " ").split())
    code, _, err = run("evaluate", beir, "--model", tiny_rankt5)
    assert code == 1
    assert "this one as the reranker" in err


def test_evaluate_writes_figures_and_runs(run, beir, tmp_path, tiny_bert):
    figures, runs = tmp_path / "out" / "figures.json", tmp_path / "runs"
    code, out, _ = run("evaluate", beir, "--model", tiny_bert, "--json", figures, "--run-dir", runs)
    assert code == 0
    assert "small test, 2 queries" in out
    record = json.loads(figures.read_text())
    assert {key: record[key] for key in ("collection", "split", "model")} == {
        "collection": "small",
        "split": "test",
        "model": str(tiny_bert),
    }
    assert set(record) == {"collection", "split", "model", "systems"}
    assert list(record["systems"]) == ["retrieve", "rocchio", "listwise"]
    qrels = {"q1": {"cats": 1}, "q2": {"ferry": 1}}
    for system, values in record["systems"].items():
        assert set(values) == {"nDCG@10", "R@100", "RR@10", "seconds_per_query"}
        assert values.pop("seconds_per_query") > 0
        assert all(0.0 <= value <= 1.0 for value in values.values())
        written = read_run(runs / f"small.test.{system}.trec")
        assert evaluate(written, qrels) == values
        assert {query: set(documents) for query, documents in written.items()} == {
            query: set(IDS) for query in QUERIES
        }


@pytest.mark.parametrize("id", ["a\nb", "a b", "a\tb", "\n", "é\x0bé"])
@pytest.mark.parametrize("of", ["document", "query"])
def test_a_trec_id_that_cannot_be_written_is_refused_before_anything_is_measured(
    run, beir, tmp_path, tiny_bert, monkeypatch, id, of
):
    id = f"x{id}"
    if of == "document":
        jsonl(beir / "corpus.jsonl.gz", [*RECORDS, {"_id": id, "text": "birds"}])
    else:
        jsonl(beir / "queries.jsonl", [{"_id": id, "text": "q"}])
        monkeypatch.setattr(Collection, "qrels", lambda *_: {id: {"cats": 1}})
    command = ["evaluate", beir, "--model", tiny_bert, "--systems", "retrieve"]
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "from_pretrained", None)
        code, _, err = run(*command, "--run-dir", tmp_path / "runs")
    assert code == 1
    assert f"a {of} id is {id!r}; a TREC run separates its columns by white space" in err
    assert list((tmp_path / "runs").iterdir()) == []
    assert run(*command)[0] == 0


def test_places_that_cannot_be_written_are_refused_before_anything_is_measured(
    run, beir, tmp_path, tiny_bert, monkeypatch
):
    monkeypatch.setattr(Encoder, "from_pretrained", None)
    (tmp_path / "file").write_text("")
    for option, place in (
        ("--run-dir", tmp_path / "file"),
        ("--json", tmp_path / "file" / "figures.json"),
        ("--json", tmp_path),
    ):
        code, _, err = run("evaluate", beir, "--model", tiny_bert, option, place)
        assert code == 1
        assert str(tmp_path) in err


def test_evaluate_ranks_the_candidates_of_a_run(run, beir, tmp_path, tiny_bert, bert):
    candidates = tmp_path / "bm25.trec"
    candidates.write_text("q1 Q0 bread 1 9.5 bm25\nq1 Q0 dogs 2 8 bm25\nq1 Q0 cats 3 7 bm25\n")
    figures, runs = tmp_path / "figures.json", tmp_path / "runs"
    options = ["--run", candidates, "--json", figures, "--run-dir", runs, "--model", tiny_bert]
    code, _, _ = run("evaluate", beir, "--systems", "retrieve, listwise", *options)
    assert code == 0
    texts = {id: text for id, text in zip(IDS, TEXTS, strict=True) if id != "ferry"}
    cosines = bert.encode_documents(list(texts.values())) @ bert.encode_queries([QUERIES["q1"]])[0]
    by_hand = [list(texts)[i] for i in np.argsort(-cosines)]
    written = read_run(runs / "small.test.retrieve.trec")
    assert {query: list(documents) for query, documents in written.items()} == {"q1": by_hand}
    # q2 is not in the run: it counts as zero.
    place = by_hand.index("cats") + 1
    values = json.loads(figures.read_text())["systems"]["retrieve"]
    assert values["RR@10"] == pytest.approx(1 / place / 2)
    assert values["nDCG@10"] == pytest.approx(1 / math.log2(place + 1) / 2)
    assert values["R@100"] == 0.5


def test_evaluate_takes_judgements_from_a_file(run, beir, tmp_path, tiny_bert):
    qrels, figures = tmp_path / "other.qrels", tmp_path / "figures.json"
    qrels.write_text("q2 0 nowhere 1\n")
    options = ["--qrels", qrels, "--json", figures, "--model", tiny_bert]
    code, out, _ = run("evaluate", beir, "--systems", "retrieve", *options)
    assert code == 0
    assert "1 queries" in out
    values = json.loads(figures.read_text())["systems"]["retrieve"]
    assert [values[name] for name in ("nDCG@10", "R@100", "RR@10")] == [0.0, 0.0, 0.0]


def test_evaluate_keeps_its_index_where_it_is_told(run, beir, tmp_path, tiny_bert):
    options = ["--systems", "retrieve", "--model", tiny_bert, "--index", tmp_path / "kept"]
    for _ in range(2):
        assert run("evaluate", beir, *options)[0] == 0
    store = QdrantStore.open(tmp_path / "kept", "probe")
    (collection,) = store.client.get_collections().collections
    assert re.fullmatch(r"small-[0-9a-f]{8}", collection.name)
    store.close()


def test_an_unknown_split_names_those_there_are(run, beir):
    code, _, err = run("evaluate", beir, "--split", "dev")
    assert code == 1
    assert "has no split 'dev'; there is: test" in err


# verify


@pytest.fixture(scope="module")
def saved_qwen3(qwen3, tmp_path_factory):
    return qwen3.save(tmp_path_factory.mktemp("saved") / "tiny-e2rank")


def test_verify_shows_both_tables_and_fails_for_random_weights(run, saved_qwen3):
    code, out, err = run("verify", saved_qwen3)
    assert code == 1
    for row in ("published: plain, vLLM", "published: listwise", "ours: plain", "ours: listwise"):
        assert row in out
    assert re.search(
        rf"error: the cosines are not the published ones: largest difference \d\.\d+, "
        rf"tolerance {TOLERANCE}",
        err,
    )


def test_verify_refuses_other_models_with_the_reason(run):
    code, out, err = run("verify", "minilm")
    assert (code, out) == (1, "")
    assert "error: minilm does not encode as the released E2Rank models do" in err


# What comes from outside

STEERING = st.characters(categories=["Cc", "Cf", "Zl", "Zp"], exclude_characters="\x00")
ATTACKS = [
    "\x1b[2J\x1b[31m",
    "\x1b]0;title\x07",
    "\x9b2J\x90",
    "\u202egpj.exe",
    "\u2066\u2069\u200f\u2028",
    "\x7f\b\b\r",
    "[bold red]",
]
HOSTILE = st.lists(
    st.one_of(st.sampled_from(ATTACKS), STEERING, st.sampled_from("ab ")), max_size=6
)
HOSTILE_TEXT = HOSTILE.map(lambda parts: "x" + "".join(parts))


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@example(**dict.fromkeys(["id", "text", "key", "value", "name"], "x" + "".join(ATTACKS)))
@given(id=HOSTILE_TEXT, text=HOSTILE_TEXT, key=HOSTILE_TEXT, value=HOSTILE_TEXT, name=HOSTILE_TEXT)
def test_nothing_from_outside_reaches_the_terminal_raw(
    run_raw, tmp_path_factory, bert, tiny_bert, id, text, key, value, name
):
    folder = tmp_path_factory.mktemp("hostile")
    index = folder / "index"
    store = QdrantStore.open(index, "documents")
    store.prepare(bert.dim, fingerprint=bert.fingerprint, model=name)
    store.upsert([Document(id, text, {key: value, "title": value})], bert.encode_documents([text]))
    store.close()
    by_bert = ["--index", index, "--model", tiny_bert]
    hostile_file = folder / (name.replace("/", "") + ".jsonl")
    bad = [{"_id": id, "text": ""}, {key: value}, {"_id": id, "text": text, key: [value]}]
    jsonl(hostile_file, [*bad, bad[-1]])
    commands = [
        ["search", text, *by_bert],
        ["search", "q", *by_bert, "--json"],
        ["search", "q", "--index", index],
        ["search", "q", *by_bert, "--collection", name],
        ["search", "q", "--index", name],
        ["search", "q", "--index", f"htp://{name}"],
        ["search", "q", *by_bert, "--debug", "--collection", name],
        ["search", "q", *by_bert, "--reranker", "r", "--system", name],
        ["index", hostile_file, *by_bert],
        ["index", hostile_file, *by_bert, "--skip-bad"],
        ["index", folder / name, *by_bert],
        ["index", "a", name, *by_bert],
        ["evaluate", folder / name],
        ["evaluate", folder, "--systems", name],
        ["train", hostile_file],
        ["train", folder / name, f"{name}=1"],
        [f"--{name}"],
        [name],
    ]
    for command in commands:
        shown = "".join(run_raw(*command))
        steering = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")}
        assert steering <= {"\n", "\u200c", "\u200d"}, command


def test_a_servers_reply_does_not_reach_the_terminal_raw(run, tiny_bert):
    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"status": {"error": "".join(ATTACKS)}}).encode()
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        code, _, err = run("search", "q", "--index", url, "--model", tiny_bert)
        server.shutdown()
    assert code == 1
    assert one_line(err)
    assert r"refused (400): \x1b[2J\x1b[31m\x1b]0;title\x07" in err


# Errors


def one_line(err):
    lines = [line for line in err.splitlines() if line]
    return len(lines) == 1 and lines[0].startswith("error: ")


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
    corpus = jsonl(tmp_path / "c.jsonl", [])
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


def test_evaluate_refuses_to_expand_a_given_run(run, beir):
    code, _, err = run("evaluate", beir, "--run", beir / "bm25.trec", "--expand")
    assert code == 2
    assert "with --run nothing is searched" in " ".join(err.split())


# label

LISTS = [
    {"query": f"q{n}", "documents": [f"{n} a", f"{n + 2} b", f"{n + 1} c"], "labels": [1, 0, 0]}
    for n in range(6)
]


@pytest.fixture
def lists(tmp_path):
    return jsonl(tmp_path / "lists.jsonl", LISTS)


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
            time.sleep(0.2)
        return said(asked.best)

    output = tmp_path / "out.jsonl"
    with ChatServer(answer) as server:
        code, out, err = run("label", lists, output, *ask(server, "--concurrency", 1))
        assert code == 1
        assert "interrupted; the same command goes on" in err
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
    lists = jsonl(tmp_path / "ids.jsonl", [{"query": "q", "ids": IDS, "labels": [1, 0, 0, 0]}])
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
        (["--key-env", "X", "--seed", "1"], "for a chat model: key_env, seed; name its --endpoint"),
        (["--endpoint", "http://h/v1", "--body", "{"], "--body is no JSON"),
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
    assert "out, line 1: no list that a teacher labelled" in err
