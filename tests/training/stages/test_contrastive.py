"""Stage 1 learns its pairs, by task, and says what it compares."""

from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from typer.testing import CliRunner

from e2rank_rag.cli import app
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.training import train
from e2rank_rag.training.config import ContrastiveConfig
from e2rank_rag.training.loop import StageTrainer
from e2rank_rag.training.stages.contrastive import contrastive_loss
from tests.kit import write_jsonl
from tests.training.conftest import TOPICS, stop_in_the_sixth_step

PAIRS = [(f"about {a} {b}", f"{b} so {a}") for a in TOPICS for b in ("islands", "yeast")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Sixteen pairs that belong together by chance."""
    order = np.random.default_rng(0).permutation(16)
    records = [{"query": PAIRS[i][0], "pos": PAIRS[j][1]} for i, j in enumerate(order)]
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", records)


def configured(model, path, output, *, trainer=None, **changes):
    return ContrastiveConfig.model_validate(
        {
            "init_from": str(model),
            "output": output,
            "data": [{"path": path}],
            "negatives": 0,
            "trainer": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 5e-3,
                "warmup_steps": 0,
                "logging_steps": 1,
                "use_cpu": True,
                "disable_tqdm": True,
                "seed": 1,
                **(trainer or {}),
            },
            **changes,
        }
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


def record(folder):
    return json.loads((folder / "run" / "run.json").read_text())


def logged(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_document_near_the_positive_is_no_negative():
    draw = torch.Generator().manual_seed(0)
    queries, documents = (F.normalize(torch.randn(n, 3, generator=draw), dim=-1) for n in (8, 16))
    positives = torch.arange(8) * 2
    batch = {
        "positives": positives,
        "document_keys": torch.arange(1, 17),
        "relevant_keys": torch.zeros(8, 1, dtype=torch.long),
    }
    config = configured("", "", "", near_positive=0.8, temperature=0.1)
    loss, parts = contrastive_loss(queries, documents, batch, config)
    expected, negatives = 0.0, 0
    for row, place in enumerate(positives.tolist()):
        left = [
            other
            for other in range(16)
            if other != place and float(documents[place] @ documents[other]) < 0.8
        ]
        negatives += len(left)
        scores = documents[[place, *left]] @ queries[row] / 0.1
        expected += float(torch.logsumexp(scores, 0) - scores[0]) / 8
    assert 0 < negatives < 8 * 15
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert float(parts["negatives"]) == pytest.approx(negatives / 8)


@pytest.mark.parametrize("chunk_size", [None, pytest.param(6, marks=pytest.mark.slow)])
def test_sixteen_pairs_of_chance_are_learnt_by_heart(tiny_bert, pairs, tmp_path, chunk_size):
    config = configured(
        tiny_bert,
        pairs,
        tmp_path / "model",
        chunk_size=chunk_size,
        dropout=0.0,
        trainer={"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 2e-3},
    )

    def found(encoder):
        records = [json.loads(line) for line in pairs.read_text().splitlines()]
        scores = (
            encoder.encode_queries([r["query"] for r in records])
            @ encoder.encode_documents([r["pos"] for r in records]).T
        )
        return float(np.mean(scores.argmax(1) == np.arange(16)))

    with Encoder.from_pretrained(tiny_bert) as base:
        assert found(base) < 0.5
    with Encoder.from_pretrained(train(config)) as trained:
        assert found(trained) == 1.0


def test_the_dev_figure_rises_above_what_the_base_finds(tiny_bert, pairs, tmp_path):
    config = configured(
        tiny_bert,
        pairs,
        tmp_path / "model",
        dropout=0.0,
        dev=[{"path": pairs}],
        patience=2,
        trainer={
            "max_steps": 60,
            "per_device_train_batch_size": 16,
            "learning_rate": 2e-3,
            "eval_steps": 20,
            "save_steps": 20,
            "eval_on_start": True,
        },
    )
    figures = [each["eval_mean"] for each in logged(train(config)) if "eval_mean" in each]
    assert figures[0] < 0.8
    assert max(figures) == pytest.approx(1.0)


def test_a_stopped_run_goes_on_to_the_weights_of_an_unbroken_one(
    tiny_bert, pairs, tmp_path, monkeypatch
):
    """With dropout and chunks: both take random numbers."""
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7}
    whole, broken = (
        configured(tiny_bert, pairs, tmp_path / name, chunk_size=3, trainer=saving)
        for name in ("whole", "broken")
    )
    expected = weights(train(whole))
    stop_in_the_sixth_step(broken, monkeypatch)
    for name, tensor in weights(train(broken, resume=True)).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_batch_is_of_one_source_and_of_one_task(tiny_bert, tmp_path, monkeypatch):
    records = [
        {"query": f"{name} {place}", "pos": f"{name} so {place}", "task": name}
        for name in ("cats", "dogs", "bread")
        for place in range(6)
    ]
    mixed = write_jsonl(tmp_path / "mixed.jsonl", records[:12])
    other = write_jsonl(tmp_path / "other.jsonl", records[12:])
    config = configured(
        tiny_bert,
        mixed,
        tmp_path / "model",
        data=[{"path": mixed}, {"path": other}],
        trainer={"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 2},
    )
    seen = []
    compute = StageTrainer.compute_loss

    def watched(self, model, inputs, **options):
        (chunk,) = inputs["queries"]
        seen.append(set(chunk["input_ids"][:, 1].tolist()))
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(StageTrainer, "compute_loss", watched)
    train(config)
    assert len(seen) == 27
    assert all(len(first) == 1 for first in seen)
    assert len({frozenset(first) for first in seen}) == 3


def test_the_instruction_of_a_task_stands_before_its_queries(tiny_qwen3, tmp_path, monkeypatch):
    records = [{"query": query, "pos": f"{query} purr"} for query in ("cats", "dogs")]
    config = configured(
        tiny_qwen3,
        "",
        tmp_path / "model",
        pooling="last",
        prompts="e2rank",
        data=[{"path": write_jsonl(tmp_path / "x.jsonl", records), "task": "dig for the bread"}],
        trainer={"max_steps": 1, "per_device_train_batch_size": 2},
    )
    texts = []
    compute = StageTrainer.compute_loss

    def watched(self, model, inputs, **options):
        tokenizer = self.stage.encoder.tokenizer._tokenizer
        texts.extend(tokenizer.batch_decode(inputs["queries"][0]["input_ids"]))
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(StageTrainer, "compute_loss", watched)
    folder = train(config)
    expected = {f"Instruct: dig for the bread\nQuery:{q}<|endoftext|>" for q in ("cats", "dogs")}
    assert set(texts) == expected
    with (
        Encoder.from_pretrained(folder) as trained,
        Encoder.from_pretrained(tiny_qwen3, pooling="last", prompts="e2rank") as base,
    ):
        assert trained.recipe == base.recipe


def test_lora_weights_are_merged_into_the_saved_model(tiny_bert, pairs, tmp_path):
    config = configured(tiny_bert, pairs, tmp_path / "model", lora={"rank": 4}, chunk_size=2)
    before, after = weights(tiny_bert), weights(train(config))
    assert "encoder.layer.0.attention.self.query.weight" in after
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert "encoder.layer.0.attention.self.query.weight" in moved
    assert "embeddings.word_embeddings.weight" not in moved


def test_training_lengths_are_not_those_of_the_saved_model(tiny_bert, tmp_path, monkeypatch):
    long = {"query": "cats " * 30, "pos": "dogs " * 60}
    data = write_jsonl(tmp_path / "long.jsonl", [long, {"query": "bread", "pos": "ferry"}])
    config = configured(
        tiny_bert,
        data,
        tmp_path / "model",
        max_tokens=10,
        trainer={"max_steps": 1, "per_device_train_batch_size": 2},
    )
    widths = []
    compute = StageTrainer.compute_loss

    def watched(self, model, inputs, **options):
        widths.extend(inputs[side][0]["input_ids"].shape[1] for side in ("queries", "documents"))
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(StageTrainer, "compute_loss", watched)
    with Encoder.from_pretrained(train(config)) as trained:
        assert trained.recipe.document_tokens == 128
    assert widths == [10, 10]


def test_dev_sets_are_measured_by_what_they_retrieve(tiny_bert, tmp_path):
    records = [
        {"query": f"about {a}", "documents": [f"no {a}", f"{a} so", "bread"], "labels": [0, 1, 0]}
        for a in TOPICS
    ]
    lists = write_jsonl(tmp_path / "lists.jsonl", records)
    config = configured(
        tiny_bert,
        lists,
        tmp_path / "model",
        negatives=2,
        dev=[{"path": lists}],
        patience=3,
        trainer={"max_steps": 6, "eval_steps": 3, "save_steps": 3},
    )
    measured = [each for each in logged(train(config)) if "eval_mean" in each]
    assert [each["step"] for each in measured] == [3, 6]
    for each in measured:
        assert each["eval_mean"] == each["eval_retrieve"] == each["eval_lists_retrieve"]
        assert "eval_rerank" not in each


def test_a_model_without_a_listwise_prompt_is_trained_and_measured(tiny_qwen3, pairs, tmp_path):
    config = configured(
        tiny_qwen3,
        pairs,
        tmp_path / "model",
        pooling="last",
        prompts={"query": "Query:{query}"},
        dev=[{"path": pairs}],
        trainer={"max_steps": 2, "eval_steps": 2, "save_steps": 2},
    )
    with Encoder.from_pretrained(train(config)) as trained:
        assert trained.recipe.prompts.listwise is None


def test_another_run_is_not_written_over(tiny_bert, pairs, tmp_path):
    config = configured(tiny_bert, pairs, tmp_path / "model")
    train(config)
    with pytest.raises(FileExistsError, match="holds the record of a training run"):
        train(config)


@pytest.fixture
def collection(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(
        folder / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(TOPICS)]
    )
    write_jsonl(
        folder / "queries.jsonl",
        [{"_id": "1", "text": "about cats"}, {"_id": "2", "text": "prime"}],
    )
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\td0\t1\n2\td5\t1\n")
    return folder


def test_a_folder_gives_pairs_and_with_negatives_triples(
    tiny_bert, collection, tmp_path, monkeypatch
):
    two = {"per_device_train_batch_size": 2}
    triples = configured(tiny_bert, collection, tmp_path / "a", negatives=3, trainer=two)
    assert record(train(triples))["negatives"] == {"hard": 3, "in_all": 7}
    monkeypatch.setattr(Encoder, "encode_documents", None)  # nothing is mined
    bare = configured(tiny_bert, collection, tmp_path / "b", negatives=0, trainer=two)
    folder = train(bare)
    assert record(folder)["negatives"] == {"hard": 0, "in_all": 1}
    assert record(folder)["data"][0]["examples"] == 2


def test_a_run_records_and_logs_how_many_negatives_a_query_has(tiny_bert, tmp_path, caplog):
    records = [{"query": q, "pos": f"{q} so", "neg": [f"no {q}"]} for q in TOPICS]
    data = write_jsonl(tmp_path / "triples.jsonl", records)
    config = configured(tiny_bert, data, tmp_path / "model", negatives=1)
    with caplog.at_level(logging.INFO, "e2rank_rag"):
        folder = train(config)
    assert "a query has 7 negatives, 1 of them hard" in caplog.text
    assert record(folder)["negatives"] == {"hard": 1, "in_all": 7}
    assert record(folder)["config"]["stage"] == "contrastive"
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert record(folder)["data"] == [
        {"path": str(data), "examples": 8, "sha256": {"triples.jsonl": digest}}
    ]
    steps = [each for each in logged(folder) if "loss" in each]
    assert [each["negatives"] for each in steps] == [7.0, 7.0]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"negatives": 3}, "negatives is 3, but no example has more than 0 documents with a label"),
        (
            {"trainer": {"gradient_accumulation_steps": 2, "max_steps": 1}},
            "gradient_accumulation_steps is 2, which adds no negatives",
        ),
        (
            {"trainer": {"per_device_train_batch_size": 20, "max_steps": 1}},
            "a task has 16 examples, fewer than the 20 of a batch",
        ),
    ],
)
def test_what_is_probably_not_meant_is_told(tiny_bert, pairs, tmp_path, caplog, changes, warning):
    with caplog.at_level(logging.WARNING, "e2rank_rag"):
        train(configured(tiny_bert, pairs, tmp_path / "model", **changes))
    assert warning in caplog.text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 17: the line: Invalid JSON"),
        ('{"query": "q"}', "line 17: no documents: expected documents, ids, or pos"),
        ('{"query": "", "pos": "a"}', "line 17: query is empty"),
        ('{"query": "q", "pos": ["a", " "]}', "line 17: document 1 is empty"),
        ('{"query": "q", "pos": []}', "line 17: no document has a label above 0"),
        ('{"query": "\\u200b", "pos": "a"}', r"query 16 is empty: '\\u200b' has no token"),
    ],
)
def test_bad_data_are_refused_before_the_first_step(
    tiny_bert, pairs, tmp_path, monkeypatch, line, reason
):
    monkeypatch.setattr(StageTrainer, "train", None)
    path = tmp_path / "bad.jsonl"
    path.write_text(pairs.read_text() + line + "\n")
    with pytest.raises(ValueError, match=reason):
        train(configured(tiny_bert, path, tmp_path / "model"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trainer": {"max_stepz": 1}}, r"trainer\.max_stepz is not an argument"),
        ({"trainer": {"output_dir": "x"}}, "trainer.output_dir is set by the training itself"),
        ({"prompts": "e3rank"}, "prompts must be a Prompts record or one of"),
        ({"data": [{"path": "nowhere.jsonl"}]}, "nowhere.jsonl"),
    ],
)
def test_a_bad_configuration_is_refused_before_the_first_step(
    tiny_bert, pairs, tmp_path, monkeypatch, changes, reason
):
    monkeypatch.setattr(StageTrainer, "train", None)
    with pytest.raises((ValueError, OSError), match=reason):
        train(configured(tiny_bert, pairs, tmp_path / "model", **changes))


def test_a_task_that_is_no_name_is_refused_before_the_first_step(tiny_qwen3, tmp_path, monkeypatch):
    monkeypatch.setattr(StageTrainer, "train", None)
    data = write_jsonl(tmp_path / "x.jsonl", [{"query": "q", "pos": "a", "task": "scfact"}])
    config = configured(tiny_qwen3, data, tmp_path / "m", pooling="last", prompts="e2rank")
    with pytest.raises(ValueError, match="'scfact'"):
        train(config)


def test_the_command_trains_the_stage_that_a_file_names(tiny_bert, pairs, tmp_path):
    file = tmp_path / "stage1.yaml"
    file.write_text(
        f"stage: contrastive\ninit_from: {tiny_bert}\noutput: {tmp_path / 'model'}\n"
        f"data: [{{path: {pairs}}}]\ntrainer: {{max_steps: 1, use_cpu: true}}\n"
    )
    arguments = ["train", str(file), "trainer.per_device_train_batch_size=4", "negatives=0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert record(tmp_path / "model")["negatives"] == {"hard": 0, "in_all": 3}
