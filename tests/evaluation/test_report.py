"""An experiment reads a folder, a run and qrels; what it writes can be read back."""

from __future__ import annotations

import json

import pytest

from e2rank_rag.evaluation.differences import Differences
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.report import Experiment, run_experiment
from e2rank_rag.evaluation.runs import read_run
from e2rank_rag.store import QdrantStore

CORPUS = {
    "cats": "cats purr, cats sleep, cats purr again",
    "dogs": "dogs bark, dogs dig, dogs bark again",
    "ferry": "A ferry crosses the strait between the two islands four times a day.",
    "bread": "Bread rises because yeast turns sugar into carbon dioxide.",
}
SYSTEMS = ("retrieve", "rocchio", "listwise")
QUERIES = {"q1": "Which animals purr?", "q2": "When does the ferry cross?", "q3": "not judged"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", CORPUS), ("queries", QUERIES)):
        lines = [json.dumps({"_id": id, "text": text}) for id, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\tcats\t1\nq2\tferry\t1\n"
    )
    return folder


@pytest.fixture
def store():
    store = QdrantStore.open(":memory:", "things")
    yield store
    store.close()


def trec(path, rankings):
    path.write_text(
        "".join(
            f"{query} Q0 {id} {rank} {-rank} bm25\n"
            for query, ids in rankings.items()
            for rank, id in enumerate(ids, start=1)
        )
    )
    return path


def test_the_judged_queries_are_read(folder):
    experiment = Experiment.read(folder, "test")
    assert experiment.name == "small"
    assert list(experiment.queries) == ["q1", "q2"]
    assert experiment.candidates is None
    assert [document.id for document in experiment.documents()] == list(CORPUS)


def test_judgements_may_come_from_a_file(folder, tmp_path):
    qrels = tmp_path / "other.qrels"
    qrels.write_text("q3 0 bread 2\n")
    experiment = Experiment.read(folder, "no such split", qrels=qrels)
    assert experiment.queries == {"q3": "not judged"}
    assert experiment.qrels == {"q3": {"bread": 2}}


def test_a_judged_query_that_the_folder_lacks_is_an_error(folder, tmp_path):
    qrels = tmp_path / "other.qrels"
    qrels.write_text("q1 0 cats 1\nq9 0 bread 2\n")
    with pytest.raises(ValueError, match=r"lacks 1 of the 2 .* 'q9'"):
        Experiment.read(folder, "test", qrels=qrels)


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ('{"_id": "q2", "text": ""}', "q2"),
        ('{"_id": "q2"}', "q2"),
        ("{broken", None),
        ('{"_id": "q1", "text": "again"}', "q1"),
    ],
)
def test_a_bad_query_is_an_error_or_unread(folder, line, id):
    good = json.dumps({"_id": "q1", "text": QUERIES["q1"]})
    (folder / "queries.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=r"queries\.jsonl, line 2: "):
        Experiment.read(folder, "test")
    bad = []
    if id == "q1":
        with pytest.raises(ValueError, match=r"lacks 1 of the 2 .* 'q2'"):
            Experiment.read(folder, "test", on_bad=bad.append)
    else:
        experiment = Experiment.read(folder, "test", on_bad=bad.append)
        assert (list(experiment.queries), experiment.unread) == (["q1"], ("q2",))
        assert list(experiment.qrels) == ["q1", "q2"]
    assert [(record.line, record.id) for record in bad] == [(2, id)]


def test_with_a_run_only_its_documents_are_read(folder, tmp_path):
    run = trec(tmp_path / "bm25.trec", {"q1": ["dogs", "cats"], "q3": ["bread"]})
    experiment = Experiment.read(folder, "test", run=run)
    assert experiment.candidates["q1"] == ["dogs", "cats"]
    # bread is a candidate of a query without judgements only.
    assert [document.id for document in experiment.documents()] == ["cats", "dogs"]


def test_a_document_of_the_run_that_the_corpus_lacks_is_an_error(folder, tmp_path, bert, store):
    run = trec(tmp_path / "bm25.trec", {"q1": ["cats", "mice"]})
    experiment = Experiment.read(folder, "test", run=run)
    with pytest.raises(ValueError, match=r"1 documents of the run are not in .*\['mice'\]"):
        run_experiment(experiment, bert, store, ["retrieve"])


def test_every_system_is_run_over_one_index(folder, bert, store):
    results = run_experiment(Experiment.read(folder, "test"), bert, store, SYSTEMS)
    assert list(results) == list(SYSTEMS)
    assert store.count() == len(CORPUS)
    for result in results.values():
        assert {query: len(hits) for query, hits in result.rankings.items()} == {"q1": 4, "q2": 4}
        assert result.measures["R@100"] == 1.0


def test_bad_records_of_the_corpus_are_logged(folder, bert, store, caplog):
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write('\n{"_id": "bad"}\n{"_id": "cats", "text": "again"}\n')
    run_experiment(Experiment.read(folder, "test"), bert, store, ["retrieve"])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "left out line 5 of the corpus",
        "left out document 5",
    ]
    assert store.count() == len(CORPUS)


def test_the_json_has_exactly_this_form(folder, tmp_path, bert, store):
    experiment = Experiment.read(folder, "test")
    results = run_experiment(experiment, bert, store, ["retrieve", "listwise"])
    path = tmp_path / "new" / "figures.json"
    experiment.write_json(path, results, model="tiny")
    record = json.loads(path.read_text())
    assert list(record) == ["collection", "split", "model", "systems"]
    assert (record["collection"], record["split"], record["model"]) == ("small", "test", "tiny")
    assert list(record["systems"]) == ["retrieve", "listwise"]
    for name, system in record["systems"].items():
        assert list(system) == ["nDCG@10", "R@100", "RR@10", "seconds_per_query"]
        assert all(0.0 <= system[measure] <= 1.0 for measure in ("nDCG@10", "R@100", "RR@10"))
        assert system == {
            **results[name].measures,
            "seconds_per_query": results[name].seconds_per_query,
        }


def test_the_json_has_every_difference_of_every_measure(folder, tmp_path, bert, store):
    experiment = Experiment.read(folder, "test")
    results = run_experiment(experiment, bert, store, SYSTEMS)
    found = Differences.of({name: of.by_query for name, of in results.items()}, "retrieve")
    experiment.write_json(tmp_path / "figures.json", results, model="tiny", differences=found)
    record = json.loads((tmp_path / "figures.json").read_text())
    assert list(record["differences"]) == ["rocchio", "listwise"]
    for method, by in record["differences"].items():
        assert list(by) == ["nDCG@10", "R@100", "RR@10"]
        for measure, each in by.items():
            assert list(each) == ["against", "wins", "losses", "ties", "p", "p_holm"]
            assert each["against"] == "retrieve"
            assert each["wins"] + each["losses"] + each["ties"] == 2
            assert each["p"] == found.by_method[method][measure].p


def test_a_method_that_cannot_be_run_is_refused_before_anything_is_indexed(folder, bert, store):
    with pytest.raises(ValueError, match="'rerank' runs a reranker"):
        run_experiment(Experiment.read(folder, "test"), bert, store, ["retrieve", "rerank"])
    assert not store.exists


def test_the_json_says_for_how_many_queries_their_own_document_was_left_out(
    folder, tmp_path, bert, store
):
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write("\n" + json.dumps({"_id": "q1", "text": QUERIES["q1"]}))
    experiment = Experiment.read(folder, "test")
    results = run_experiment(experiment, bert, store, ["retrieve"])
    experiment.write_json(tmp_path / "figures.json", results, model="tiny")
    assert json.loads((tmp_path / "figures.json").read_text())["own_documents_left_out"] == 1


def test_runs_that_were_written_measure_the_same(folder, tmp_path, bert, store):
    experiment = Experiment.read(folder, "test")
    results = run_experiment(experiment, bert, store, SYSTEMS)
    experiment.write_runs(tmp_path / "runs", results)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [f"small.test.{system}.trec" for system in sorted(SYSTEMS)]
    for system, result in results.items():
        run = read_run(tmp_path / "runs" / f"small.test.{system}.trec")
        assert {query: list(scores) for query, scores in run.items()} == {
            query: [hit.document.id for hit in hits] for query, hits in result.rankings.items()
        }
        assert evaluate(run, experiment.qrels) == result.measures
