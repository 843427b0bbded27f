"""`e2rank evaluate` on a small collection: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import read_run
from e2rank_rag.evaluation.systems import Comparison
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store import QdrantStore
from tests.cli.parts import IDS, QUERIES, RECORDS, TEXTS
from tests.kit import write_jsonl


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
        assert list(record["systems"]) == ["retrieve", "hybrid", "rocchio", "rerank"]
        assert all(list(values) == measures for values in record["systems"].values())
    code, _, _ = run("evaluate", beir, "--systems", "rerank,listwise", *by_rankt5, *options)
    assert code == 0
    assert list(json.loads(figures.read_text())["systems"]) == ["rerank", "listwise"]


def test_an_empty_query_ends_evaluate_or_counts_as_zero_and_is_said(run, beir, tmp_path, tiny_bert):
    command = ["evaluate", beir, "--model", tiny_bert, "--systems", "retrieve"]
    write_jsonl(beir / "queries.jsonl", [{"_id": "q1", "text": QUERIES["q1"]}])
    (beir / "qrels" / "half.tsv").write_text("q1\tcats\t1\n")
    half, whole = tmp_path / "half.json", tmp_path / "whole.json"
    assert run(*command, "--split", "half", "--json", half)[0] == 0

    write_jsonl(
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
    write_jsonl(beir / "corpus.jsonl.gz", [*RECORDS, *own])
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
    assert f"{tiny_rankt5} holds a cross-encoder" in err


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
    assert set(record) == {"collection", "split", "model", "systems", "differences"}
    assert list(record["systems"]) == ["retrieve", "hybrid", "rocchio", "listwise"]
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
        write_jsonl(beir / "corpus.jsonl.gz", [*RECORDS, {"_id": id, "text": "birds"}])
    else:
        write_jsonl(beir / "queries.jsonl", [{"_id": id, "text": "q"}])
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
    assert re.fullmatch(r"small-[0-9a-f]{8}-english", collection.name)
    store.close()


def test_evaluate_compares_every_system_with_one(run, beir, tmp_path, tiny_bert):
    figures = tmp_path / "figures.json"
    command = ["evaluate", beir, "--model", tiny_bert, "--json", figures]
    command += ["--systems", "retrieve,rocchio,listwise,evidence", "--measures", "RR@10,AP"]
    for options, against in (([], "retrieve"), (["--against", "rocchio"], "rocchio")):
        code, out, _ = run(*command, *options)
        assert code == 0
        assert f"RR@10 against {against}" in out
        assert f"* differs from {against} at p < 0.05" in " ".join(out.split())
        found = json.loads(figures.read_text())["differences"]
        names = ["retrieve", "rocchio", "listwise", "evidence"]
        assert list(found) == [name for name in names if name != against]
        for by in found.values():
            assert list(by) == ["RR@10", "AP"]
            for each in by.values():
                assert each["against"] == against
                assert each["wins"] + each["losses"] + each["ties"] == 2
                # Two queries cannot be further from chance than 2 of 4 patterns are.
                assert 0.5 <= each["p"] <= each["p_holm"] <= 1.0
                counts = "+{wins} ={ties} -{losses}".format(**each)
            assert counts in out


def test_evaluate_measures_words_and_hybrid_search(run, beir, tmp_path, tiny_bert):
    figures, runs = tmp_path / "figures.json", tmp_path / "runs"
    command = ["evaluate", beir, "--model", tiny_bert, "--json", figures, "--run-dir", runs]
    code, out, _ = run(*command, "--systems", "retrieve,bm25,hybrid,evidence")
    assert code == 0
    assert "nDCG@10 against hybrid" in out
    record = json.loads(figures.read_text())
    assert list(record["differences"]) == ["retrieve", "bm25", "evidence"]
    # Only the cats purr, and only the ferry crosses.
    assert read_run(runs / "small.test.bm25.trec") == {"q1": {"cats": 1.0}, "q2": {"ferry": 1.0}}
    assert record["systems"]["bm25"]["nDCG@10"] == 1.0
    code, _, _ = run(*command, "--systems", "bm25", "--language", "german")
    assert code == 0
    # "purr" stays a word of German, "animals" and "which" match nothing.
    assert read_run(runs / "small.test.bm25.trec")["q1"] == {"cats": 1.0}


@pytest.mark.parametrize(
    ("options", "hybrid"),
    [([], None), (["--candidates", "hybrid"], True), (["--candidates", "dense"], False)],
)
def test_evaluate_hands_on_which_candidates_to_rerank(
    run, beir, tiny_bert, monkeypatch, options, hybrid
):
    asked = []

    def watch(self, name):
        asked.append((name, self.hybrid, self.store.hybrid))
        return of(self, name)

    of = Comparison.run
    monkeypatch.setattr(Comparison, "run", watch)
    assert run("evaluate", beir, "--model", tiny_bert, "--systems", "rocchio", *options)[0] == 0
    assert asked == [("rocchio", hybrid, True)]


def test_without_words_evaluate_is_by_vectors_alone(run, beir, tmp_path, tiny_bert):
    figures = tmp_path / "figures.json"
    command = ["evaluate", beir, "--model", tiny_bert, "--json", figures, "--language", "none"]
    code, out, _ = run(*command, "--index", tmp_path / "kept")
    assert code == 0
    assert "nDCG@10 against retrieve" in out
    assert list(json.loads(figures.read_text())["systems"]) == ["retrieve", "rocchio", "listwise"]
    store = QdrantStore.open(tmp_path / "kept", "probe")
    (collection,) = store.client.get_collections().collections
    assert re.fullmatch(r"small-[0-9a-f]{8}", collection.name)
    store.close()


def test_evaluate_of_one_system_compares_nothing(run, beir, tmp_path, tiny_bert):
    figures = tmp_path / "figures.json"
    options = ["--systems", "retrieve", "--model", tiny_bert, "--json", figures]
    code, out, _ = run("evaluate", beir, *options)
    assert code == 0
    assert "against" not in out
    assert "differences" not in json.loads(figures.read_text())


def test_without_retrieve_the_first_system_is_the_one_to_compare_with(run, beir, tiny_bert):
    code, out, _ = run("evaluate", beir, "--model", tiny_bert, "--systems", "listwise,rocchio")
    assert code == 0
    assert "nDCG@10 against listwise" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "rrf"], "--systems takes some of retrieve, "),
        (["--against", "prompt"], "--against takes one of retrieve, "),
        (["--systems", "listwise", "--against", "retrieve"], "--against takes one of listwise"),
        (["--candidates", "rrf"], "--candidates takes dense or hybrid, got 'rrf'"),
        (["--candidates", "hybrid", "--language", "none"], "--candidates hybrid needs words"),
        (["--systems", "bm25", "--language", "none"], "--systems bm25 searches words"),
        (["--systems", "retrieve,hybrid", "--run", "a"], "--systems hybrid searches words"),
        (["--candidates", "dense", "--run", "a"], "--run gives them: name one"),
        (["--language", "german", "--run", "a"], "--run searches nothing"),
        (["--language", "klingon"], "--language takes none or one of arabic, "),
    ],
)
def test_evaluate_refuses_options_that_do_not_fit_before_a_model_is_loaded(
    run, beir, monkeypatch, options, message
):
    monkeypatch.setattr(Encoder, "from_pretrained", None)
    code, _, err = run("evaluate", beir, *options)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("system", "message"),
    [("prompt", "its own prompt is the method 'listwise'"), ("feedback", "'evidence' needs none")],
)
def test_evaluate_refuses_a_part_that_the_model_lacks_before_anything_is_indexed(
    run, beir, tmp_path, tiny_bert, system, message
):
    options = ["--systems", f"retrieve,{system}", "--index", tmp_path / "kept"]
    code, _, err = run("evaluate", beir, "--model", tiny_bert, *options)
    assert code == 1
    assert message in " ".join(err.split())
    store = QdrantStore.open(tmp_path / "kept", "probe")
    assert store.client.get_collections().collections == []
    store.close()


def test_an_unknown_split_names_those_there_are(run, beir):
    code, _, err = run("evaluate", beir, "--split", "dev")
    assert code == 1
    assert "has no split 'dev'; there is: test" in err


def test_evaluate_refuses_to_expand_a_given_run(run, beir):
    code, _, err = run("evaluate", beir, "--run", beir / "bm25.trec", "--expand")
    assert code == 2
    assert "with --run nothing is searched" in " ".join(err.split())
