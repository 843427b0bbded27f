"""A ranker learns its lists, whatever it is made of, and opens where it was written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.cross_encoder_folder import load_cross_encoder
from e2rank_rag.models.shipped import ADAPTED_FOLDER
from e2rank_rag.recipe import CrossEncoderRecipe
from e2rank_rag.rerankers import CrossEncoderReranker
from e2rank_rag.training import train
from e2rank_rag.training.config import RankT5Config
from e2rank_rag.training.loop import StageTrainer
from e2rank_rag.training.run_folder import RunFolder
from e2rank_rag.training.sources import read_dev
from e2rank_rag.training.stages.cross_encoder import MEASURES
from tests.conftest import TEXT
from tests.cross_encoders import write_bert_cross_encoder
from tests.training.conftest import TOPICS, ndcg


@pytest.fixture(scope="module")
def tiny_cross(tmp_path_factory):
    return write_bert_cross_encoder(tmp_path_factory.mktemp("tiny-cross"))


def configured(model, lists, output, *, trainer=None, **changes):
    return RankT5Config.model_validate(
        {
            "init_from": str(model),
            "output": output,
            "data": [{"path": lists}],
            "list_size": 8,
            "max_tokens": 32,
            "dropout": 0.0,
            "loss": "pair",
            "trainer": {
                "max_steps": 4,
                "per_device_train_batch_size": 8,
                "learning_rate": 3e-3,
                "use_cpu": True,
                "disable_tqdm": True,
                "seed": 1,
                **(trainer or {}),
            },
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("model", "stated"),
    [
        ("tiny_t5", {"chunk_tokens": 1024, "trainer": {"max_steps": 60, "learning_rate": 2e-3}}),
        ("tiny_t5", {"structure": "encoder-only", "pooling": "mean"}),
        ("tiny_bert", {"lora": {"rank": 16}, "trainer": {"learning_rate": 1e-2}}),
        # Its best scores lie only log(7 / 6) apart, so it takes more steps.
        ("tiny_cross", {"loss": "poly1", "trainer": {"max_steps": 120}}),
    ],
)
def test_eight_lists_of_chance_are_learnt_by_heart(request, lists, tmp_path, model, stated):
    trainer = {"max_steps": 60, "learning_rate": 5e-3, "lr_scheduler_type": "linear"}
    stated = {**stated, "trainer": {**trainer, **stated.get("trainer", {})}}
    config = configured(request.getfixturevalue(model), lists, tmp_path / "model", **stated)
    with CrossEncoder.from_pretrained(train(config)) as ranker:
        assert ndcg(CrossEncoderReranker(ranker), lists) == pytest.approx(1.0, abs=1e-6)
        assert ranker.recipe.max_tokens == 32


@pytest.mark.parametrize("structure", ["encoder-decoder", "encoder-only"])
def test_lora_layers_are_merged_into_what_is_saved(tiny_t5, lists, tmp_path, structure):
    config = configured(tiny_t5, lists, tmp_path / "m", structure=structure, lora={"rank": 4})
    folder = train(config)
    weights = load_file(folder / "model.safetensors")
    before = load_file(tiny_t5 / "model.safetensors")
    assert not [name for name in weights if "lora" in name]
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert not torch.equal(weights[name], before[name])
    assert torch.equal(weights["shared.weight"], before["shared.weight"])
    with CrossEncoder.from_pretrained(folder) as ranker:
        assert ranker.recipe.structure == structure


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other, atol=1e-5):
    one, other = weights_of(one), weights_of(other)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol)


def test_accumulated_steps_and_chunks_equal_the_whole_batch(tiny_cross, lists, tmp_path):
    ways = {
        "whole": ({"per_device_train_batch_size": 8}, None),
        "chunks": ({"per_device_train_batch_size": 8}, 128),
        "accumulated": (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            None,
        ),
    }
    for name, (trainer, chunk_tokens) in ways.items():
        config = configured(
            tiny_cross,
            lists,
            tmp_path / name,
            # One step of SGD moves by the gradient itself.
            trainer={**trainer, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1},
            chunk_tokens=chunk_tokens,
        )
        train(config)
    assert_same_weights(tmp_path / "whole", tmp_path / "chunks")
    assert_same_weights(tmp_path / "whole", tmp_path / "accumulated")
    start, moved = load_file(tiny_cross / "model.safetensors"), weights_of(tmp_path / "whole")
    assert not torch.equal(start["classifier.weight"], moved["classifier.weight"])


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_t5"])
def test_a_run_that_was_stopped_goes_on_with_the_same_lists(request, lists, tmp_path, model):
    # No decoder: checkpoints of a head beside a T5 are ours to get right.
    stated = {"structure": "encoder-only", "list_size": 3}
    trainer = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer["per_device_train_batch_size"] = 4
    folder = request.getfixturevalue(model)
    whole = configured(folder, lists, tmp_path / "whole", trainer=trainer, **stated)
    train(whole)
    parts = configured(folder, lists, tmp_path / "parts", trainer=trainer, **stated)
    stopped = parts.model_copy(update={"trainer": {**parts.trainer, "max_steps": 2}})
    train(stopped)
    with pytest.raises(FileExistsError, match="holds the record of a training run"):
        train(parts)
    train(parts, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", atol=1e-6)


@pytest.mark.usefixtures("pictures")
def test_dev_sets_are_measured_reranked_and_ndcg_alone_decides(tiny_cross, lists, tmp_path):
    config = configured(
        tiny_cross,
        lists,
        tmp_path / "model",
        dev=[{"path": lists}],
        patience=2,
        trainer={"max_steps": 12, "eval_steps": 3, "save_steps": 3},
    )
    folder = train(config)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    measured = [each for each in map(json.loads, lines) if "eval_mean" in each]
    assert len(measured) == 4
    for each in measured:
        assert each["eval_mean"] == each["eval_rerank"] == each["eval_lists_rerank"]
        assert {"eval_lists_RR@10", "eval_lists_nDCG@5", "eval_lists_AP"} <= each.keys()
    best = max(each["eval_mean"] for each in measured)
    (dev,) = read_dev(config.dev, None, None, seed=0)
    with CrossEncoder.from_pretrained(folder) as ranker:
        figures = dev.measure_reranked(CrossEncoderReranker(ranker), MEASURES)
        assert figures["rerank"] == pytest.approx(best, abs=1e-6)
        assert figures["rerank"] == pytest.approx(
            ndcg(CrossEncoderReranker(ranker), lists), abs=1e-6
        )
    assert (folder / "run" / "metrics.png").stat().st_size > 1000


def test_candidates_of_a_folder_are_found_by_the_retriever(tiny_t5, tmp_path):
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    texts = dict(zip(TOPICS, TEXT[4:12], strict=True))
    for name, rows in (("corpus", texts), ("queries", {t: f"about {t}" for t in TOPICS[:4]})):
        lines = [json.dumps({"_id": id, "text": text}) + "\n" for id, text in rows.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split, ids in (("train", TOPICS[:2]), ("dev", TOPICS[2:4])):
        rows = "".join(f"{id}\t{id}\t1\n" for id in ids)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    config = configured(
        tiny_t5,
        folder,
        tmp_path / "model",
        dev=[{"path": folder, "split": "dev", "depth": 5}],
        trainer={"max_steps": 2, "per_device_train_batch_size": 2},
    )
    record = json.loads((train(config) / "run" / "run.json").read_text())
    assert record["data"][0]["examples"] == 2
    assert len(record["base"]["weights"]) == 64


def test_dropout_of_the_configuration_is_that_of_every_layer(tiny_t5, lists, tmp_path, monkeypatch):
    """A T5's attention keeps its own in a number, not in a layer."""
    seen = {}

    def watched(self, *args, **kwargs):
        for module in self.model.modules():
            kept = getattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", None)
            if isinstance(kept, float):
                seen.setdefault(type(module).__name__, set()).add(kept)

    monkeypatch.setattr(StageTrainer, "train", watched)
    monkeypatch.setattr(RunFolder, "plot", lambda folder: None)
    train(configured(tiny_t5, lists, tmp_path / "model", dropout=0.25))
    assert seen == {"Dropout": {0.25}, "T5Attention": {0.25}}


def test_the_head_of_a_bare_encoder_is_drawn_by_the_seed(tiny_bert, lists, tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        trainer = {"max_steps": 1, "seed": seed, "learning_rate": 1e-12}
        train(configured(tiny_bert, lists, tmp_path / name, trainer=trainer))
    torch.manual_seed(1)
    recipe = CrossEncoderRecipe(structure="encoder-only", input="segments")
    model = load_cross_encoder(tiny_bert, recipe, dtype=torch.float32, fresh_head=True)
    one, other = (weights_of(tmp_path / name)["classifier.weight"] for name in ("one", "other"))
    torch.testing.assert_close(one, model.classifier.weight.detach(), rtol=0, atol=1e-6)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "changes", "reason"),
    [
        ("tiny_cross", {"structure": "encoder-decoder"}, "has no decoder: bert is encoder-only"),
        ("tiny_cross", {"max_tokens": 65}, "max_tokens is 65, but .* can place 64 tokens only"),
        ("tiny_t5", {"score_token": "<extra_id_99>"}, "has no token '<extra_id_99>'"),
        ("tiny_t5", {"pooling": "mean"}, "pooling is for an encoder-only T5"),
        ("tiny_cross", {"max_tokens": 16, "data": "long"}, "max_tokens is 16: a query leaves"),
        ("tiny_cross", {"data": "alike"}, "no list has two documents of different labels"),
        ("tiny_cross", {"loss": "point_ce", "data": "alike"}, "a label of 0 or below"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    request, lists, tmp_path, model, changes, reason
):
    path = tmp_path / "other.jsonl"
    lines = {
        "long": {"query": "cats purr " * 5, "pos": "cats", "neg": "dogs"},
        "alike": {"query": "cats", "documents": ["cats", "dogs"], "labels": [1, 1]},
    }
    changes = dict(changes)
    if "data" in changes:
        path.write_text(json.dumps(lines[changes["data"]]) + "\n")
        changes["data"] = [{"path": path}]
    config = configured(request.getfixturevalue(model), lists, tmp_path / "model", **changes)
    with pytest.raises((ValueError, CheckpointError), match=reason):
        train(config)


def test_an_adapter_is_not_trained_on(lists, tmp_path):
    assert (ADAPTED_FOLDER / "e2rank.json").is_file()
    with pytest.raises(ValueError, match=r"has a listwise adapter.*begin from its base, 'minilm'"):
        train(configured("e2rank-minilm", lists, tmp_path / "model"))


@pytest.mark.parametrize("given", [{"retriever": "minilm"}, {"vectors": "kept"}])
def test_what_is_of_mined_sources_is_refused_without_one(tiny_t5, lists, tmp_path, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"{name}: no source is mined"):
        train(configured(tiny_t5, lists, tmp_path / "model", **given))
