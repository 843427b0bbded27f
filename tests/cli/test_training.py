"""`e2rank mine`, `train`, `adapt` and `average` on a collection of a few documents."""

from __future__ import annotations

import json

import pytest

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.training import adapt
from e2rank_rag.training.config import ADAPTER_CONFIG, read_config
from e2rank_rag.training.examples import read_examples

TEXTS = {
    "cats": "cats purr, cats sleep, cats purr again",
    "dogs": "dogs bark, dogs dig, dogs bark again",
    "ferry": "A ferry crosses the strait four times a day.",
    "bread": "Bread rises because yeast turns sugar into carbon dioxide.",
}
QUERIES = {"1": "Which animals purr?", "2": "Which animals bark?", "3": "ferry times"}
JUDGED = {"1": "cats", "2": "dogs", "3": "ferry"}
STEPS = ["trainer.max_steps=2", "trainer.use_cpu=true", "trainer.per_device_train_batch_size=2"]


@pytest.fixture
def folder(tmp_path):
    """A BEIR folder; its corpus holds one record that is no document."""
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    records = [{"_id": id, "text": text} for id, text in TEXTS.items()]
    for name, lines in (
        ("corpus.jsonl", [*records, {"_id": "blank", "text": " "}]),
        ("queries.jsonl", [{"_id": id, "text": text} for id, text in QUERIES.items()]),
    ):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split, ids in (("train", "123"), ("dev", "12")):
        rows = "".join(f"{id}\t{JUDGED[id]}\t1\n" for id in ids)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


@pytest.mark.parametrize("form", ["--texts", "--ids"])
def test_mine_writes_lists_that_training_reads(run, folder, tmp_path, tiny_bert, form, caplog):
    output = tmp_path / "lists.jsonl.gz"
    code, said, _ = run("mine", folder, output, "--model", tiny_bert, "--depth", "3", form)
    assert code == 0
    assert said == f"3 lists of 3 queries in {output}\n"
    assert "1 records of" in caplog.text
    assert "blank" not in caplog.text.split("line 5")[0]
    for example in read_examples(output, corpus=TEXTS):
        assert len(example.documents) in (3, 4)
        assert example.labels.count(1.0) == 1
        assert [TEXTS[id] for id in example.ids] == list(example.documents)


def test_adapt_gives_a_model_over_the_same_index(run, folder, tmp_path, tiny_bert):
    output = tmp_path / "adapted"
    code, said, errors = run("adapt", tiny_bert, folder, output, "--", *STEPS, "list_size=4")
    assert code == 0, errors
    assert str(output) in said
    metrics = (output / "run" / "metrics.jsonl").read_text()
    assert "eval_animals_rerank" in metrics  # its dev split
    with Encoder.from_pretrained(output) as adapted, Encoder.from_pretrained(tiny_bert) as base:
        assert adapted.fingerprint == base.fingerprint


@pytest.mark.parametrize("option", ["--mine", "--as-they-are"])
def test_adapt_takes_a_file_of_examples_and_then_measures_nothing(
    run, folder, tmp_path, tiny_bert, option
):
    lists, output = tmp_path / "lists.jsonl", tmp_path / "adapted"
    assert run("mine", folder, lists, "--model", tiny_bert)[0] == 0
    code, _, errors = run("adapt", option, tiny_bert, lists, output, *STEPS, "list_size=4")
    assert code == 0, errors
    assert "eval" not in (output / "run" / "metrics.jsonl").read_text()
    (source,) = json.loads((output / "run" / "run.json").read_text())["config"]["data"]
    assert source["mine"] == (option == "--mine")


def test_train_runs_a_configuration(run, folder, tmp_path, tiny_bert):
    config = tmp_path / "stage2.yaml"
    config.write_text(
        f"init_from: {tiny_bert}\nmode: joint\ndata: [{{path: animals}}]\nlist_size: 4\n"
        "prompt: {depths: [2]}\n"
    )
    output = tmp_path / "model"
    code, said, errors = run("train", config, f"output={output}", *STEPS)
    assert code == 0, errors
    assert said.splitlines()[-1] == (
        f"the model is in {output}, the record of the run in {output / 'run'}"
    )
    Encoder.from_pretrained(output).close()


def test_a_wrong_setting_is_one_line_on_stderr(run, tmp_path, tiny_bert):
    code, _, errors = run("adapt", tiny_bert, tmp_path / "x.jsonl", tmp_path / "o", "list_sise=4")
    assert code == 1
    assert errors.startswith("error: ")
    assert "list_sise: Extra inputs are not permitted" in errors
    assert len(errors.splitlines()) == 1


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    records = [{"query": QUERIES[id], "pos": TEXTS[JUDGED[id]]} for id in "12"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_mine_finds_hybrid_candidates_by_their_words(run, folder, tmp_path, tiny_bert):
    """The one document that has the query's words is first, or second to the nearest one."""
    output = tmp_path / "lists.jsonl"
    mine = ("mine", folder, output, "-m", tiny_bert, "--depth", "2")
    assert run(*mine, "--hybrid", "--language", "english")[0] == 0
    for example in read_examples(output):
        assert example.labels.index(1.0) in (0, 1)
        assert len(example.documents) == 2
    code, _, said = run(*mine, "--language", "german")
    assert code == 2
    assert "is for --hybrid" in said


def test_mine_takes_pairs_and_the_whole_corpus(run, folder, pairs, tmp_path, tiny_bert):
    output = tmp_path / "lists.jsonl"
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in TEXTS.items())
    )
    code, said, _ = run("mine", pairs, output, "-m", tiny_bert, "--corpus", corpus, "--ids")
    assert (code, said) == (0, f"2 lists of 2 queries in {output}\n")
    for example in read_examples(output, corpus=TEXTS):
        assert set(example.ids) == set(TEXTS)
    code, _, said = run("mine", folder, output, "-m", tiny_bert, "--corpus", corpus)
    assert code != 0
    assert "is a BEIR folder" in " ".join(said.replace("│", " ").split())


def test_adapt_mines_pairs_in_the_whole_corpus(run, pairs, tmp_path, tiny_bert, monkeypatch):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in TEXTS.items())
    )
    trained = []
    monkeypatch.setattr(
        "e2rank_rag.training.train",
        lambda config, resume: trained.append(config) or config.output,
    )
    output = tmp_path / "adapted"
    code, _, _ = run("adapt", tiny_bert, pairs, output, "--corpus", corpus, "--dev", pairs)
    assert code == 0
    (config,) = trained
    for (source,) in (config.data, config.dev):
        assert (source.path, source.corpus, source.mine) == (pairs, corpus, True)


def test_train_prints_every_field_of_a_configuration(run):
    code, said, _ = run("train", "--help-config")
    assert code == 0
    for line in ("stage: contrastive", "  init_from (required): ", "  prompt.depths ([20]): "):
        assert line in said


def test_adapt_from_python_takes_the_keys_of_a_block_that_are_given(
    pairs, tmp_path, tiny_bert, monkeypatch
):
    trained = []
    monkeypatch.setattr(
        "e2rank_rag.training.train", lambda config, resume: trained.append(config) or config.output
    )
    output = tmp_path / "adapted"
    assert adapt(tiny_bert, pairs, output, list_size=4, trainer={"max_steps": 3}) == output
    (config,) = trained
    given = {"init_from": "m", "output": "o", "data": [{"path": "x"}]}
    shipped = read_config(ADAPTER_CONFIG, given=given)
    assert config.list_size == 4
    assert config.trainer == {**shipped.trainer, "max_steps": 3}
    assert config.lora == shipped.lora


def test_average_writes_a_model_over_the_same_index(run, pairs, tmp_path, tiny_bert):
    outputs = [tmp_path / name for name in ("one", "other")]
    for number, output in enumerate(outputs):
        adapt(tiny_bert, pairs, output, list_size=4, trainer={"max_steps": 2, "seed": number})
    code, said, errors = run("average", *outputs, "-o", tmp_path / "mean", "--scale", "0.5")
    assert code == 0, errors
    assert said == f"the model is in {tmp_path / 'mean'}: 0.5 times the mean of 2\n"
    with (
        Encoder.from_pretrained(tmp_path / "mean") as mean,
        Encoder.from_pretrained(tiny_bert) as base,
    ):
        assert mean.fingerprint == base.fingerprint
    code, _, errors = run("average", tiny_bert, "-o", tmp_path / "none")
    assert code == 1
    assert "has no listwise adapter: name a model that has one" in errors
