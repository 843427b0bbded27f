"""ResRank learns its lists, joint or over frozen vectors, and a second stage goes on with it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.resrank import ResRank
from e2rank_rag.recipe import ResidualLayout
from e2rank_rag.rerankers import ResidualReranker, load_reranker
from e2rank_rag.training import train
from e2rank_rag.training.config import ResRankConfig
from e2rank_rag.training.loop import StageTrainer
from e2rank_rag.training.sources import read_dev
from e2rank_rag.training.stages.resrank import resrank_loss
from tests.training.conftest import TOPICS, ndcg

# Newer transformers warn of the old name, older ones do not know the new one.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def configured(model, lists, output, *, trainer=None, **changes):
    return ResRankConfig.model_validate(
        {
            "init_from": str(model),
            "output": output,
            "mode": "frozen",
            "data": [{"path": lists}],
            "list_size": 8,
            "dropout": 0.0,
            "gates": [1.0, 0.5],
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


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_eight_lists_with_shuffled_labels_are_learnt_by_heart(tiny_bert, lists, tmp_path, mode):
    steps = {"max_steps": 150, "num_train_epochs": 150, "learning_rate": 5e-3}
    config = configured(
        tiny_bert, lists, tmp_path / "model", mode=mode, info_nce_weight=0.0, trainer=steps
    )
    folder = train(config)
    with load_reranker(folder) as reranker:
        assert isinstance(reranker, ResidualReranker)
        assert ndcg(reranker, lists) == 1.0


def test_frozen_training_leaves_vectors_as_they_are(tiny_bert, bert, lists, tmp_path):
    folder = train(configured(tiny_bert, lists, tmp_path / "model"))
    with ResRank.from_pretrained(folder) as model:
        assert model.encoder.digest == bert.digest
        assert model.encoder.fingerprint == bert.fingerprint
        np.testing.assert_array_equal(
            model.encoder.encode_documents(TOPICS), bert.encode_documents(TOPICS)
        )
    assert not (folder / "encoder").exists()


def test_joint_training_changes_both_and_saves_both(tiny_bert, bert, lists, tmp_path):
    folder = train(configured(tiny_bert, lists, tmp_path / "model", mode="joint"))
    with ResRank.from_pretrained(folder) as model:
        assert model.encoder.digest != bert.digest
        assert model._reranker.digest not in (bert.digest, model.encoder.digest)


def test_gradients_reach_both_models_and_the_head(tiny_bert, lists, tmp_path, monkeypatch):
    seen = {}
    step = StageTrainer.training_step

    def watched(self, model, *arguments, **options):
        loss = step(self, model, *arguments, **options)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                seen[name] = max(seen.get(name, 0.0), float(parameter.grad.abs().max()))
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", watched)
    # RankNet alone: what reaches the encoder comes through the reranker and the residual.
    train(configured(tiny_bert, lists, tmp_path / "model", mode="joint", info_nce_weight=0.0))
    for name in (
        "encoder.encoder.layer.0.attention.self.query.weight",
        "encoder.embeddings.word_embeddings.weight",
        "ranker.transformer.encoder.layer.1.output.dense.weight",
        "ranker.head.gates",
        "ranker.head.scale",
        "ranker.head.feedback",
        "ranker.head.inward.weight",
        "ranker.head.outward.weight",
    ):
        assert seen[name] > 0, name


def test_the_loss_is_the_weighted_sum_of_both_tasks(tiny_bert, lists, tmp_path):
    config = configured(
        tiny_bert, lists, tmp_path, info_nce_weight=0.5, ranknet_weight=3.0, mode="joint"
    )
    generator = torch.Generator().manual_seed(0)

    def unit(*shape):
        drawn = torch.randn(*shape, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=-1)

    vectors = {
        "queries": unit(1, 4),
        "documents": unit(1, 2, 4),
        "better": unit(1, 4),
        "contextual": unit(1, 2, 4),
    }
    batch = {
        "positives": torch.tensor([0]),
        "counted": torch.ones(1, 2, dtype=torch.bool),
        "relevance": torch.tensor([[1.0, 0.0]]),
        "listed": torch.ones(1, 2, dtype=torch.bool),
    }
    loss, parts = resrank_loss(vectors, batch, config)
    cosines = (vectors["contextual"][0] @ vectors["better"][0]).tolist()
    plain = (vectors["documents"][0] @ vectors["queries"][0]).tolist()
    ranknet = np.log1p(np.exp((cosines[1] - cosines[0]) / 0.1))
    info_nce = np.log1p(np.exp((plain[1] - plain[0]) / 0.03))
    assert float(parts["ranknet"]) == pytest.approx(ranknet, rel=1e-5)
    assert float(parts["info_nce"]) == pytest.approx(info_nce, rel=1e-5)
    assert float(loss) == pytest.approx(0.5 * info_nce + 3.0 * ranknet, rel=1e-5)


def test_dev_sets_are_measured_as_the_saved_model_ranks_them(tiny_bert, lists, tmp_path):
    config = configured(
        tiny_bert,
        lists,
        tmp_path / "model",
        dev=[{"path": lists}],
        trainer={"max_steps": 20, "num_train_epochs": 20, "eval_steps": 5, "save_steps": 5},
    )
    folder = train(config)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    measured = [each for each in map(json.loads, lines) if "eval_mean" in each]
    assert len({each["eval_retrieve"] for each in measured}) == 1  # frozen
    best = max(each["eval_lists_rerank"] for each in measured)
    with ResRank.from_pretrained(folder) as trained:
        (dev,) = read_dev(config.dev, trained.encoder, None, seed=0)
        again = dev.measure(trained.encoder, None, ResidualReranker(trained))
        assert again["rerank"] == pytest.approx(best, abs=1e-6)


def test_a_second_stage_goes_on_with_all_that_the_first_has_learnt(tiny_bert, lists, tmp_path):
    layout = {"residual": "sum", "projection": "linear"}
    first = train(configured(tiny_bert, lists, tmp_path / "one", mode="joint", layout=layout))
    still = {"learning_rate": 0.0, "max_steps": 1}
    for mode in ("joint", "frozen"):
        config = configured(first, lists, tmp_path / mode, mode=mode, trainer=still)
        second = train(config)
        assert (
            json.loads((second / "e2rank.json").read_text())["layout"]
            == ResidualLayout(**layout).model_dump()
        )
        with load_reranker(first) as before, load_reranker(second) as after:
            assert ndcg(after, lists) == ndcg(before, lists)
            assert after.encoder.fingerprint == before.encoder.fingerprint
    other = configured(first, lists, tmp_path / "x", layout={"residual": "none"})
    with pytest.raises(ValueError, match=r"layout: .* was trained with .*residual='sum'"):
        train(other)


def test_a_model_moves_without_the_first_stage_or_any_path_of_the_machine(
    tiny_bert, lists, tmp_path
):
    first = train(configured(tiny_bert, lists, tmp_path / "one", mode="joint"))
    second = train(configured(first, lists, tmp_path / "two"))
    with load_reranker(second) as before:
        expected = before.encoder.encode_documents(TOPICS)
        assert before.encoder.digest != Encoder.from_pretrained(tiny_bert).digest
    shutil.rmtree(first)
    with load_reranker(second.rename(tmp_path / "elsewhere")) as after:
        np.testing.assert_array_equal(after.encoder.encode_documents(TOPICS), expected)


@pytest.mark.parametrize(
    ("folder", "stated"),
    [
        ("tiny_qwen3", {"pooling": "last", "prompts": "e2rank"}),
        ("tiny_bert", {"pooling": "cls", "prompts": "plain"}),
    ],
)
def test_a_frozen_encoder_is_opened_as_it_was_trained_with(
    request, lists, tmp_path, folder, stated
):
    folder = request.getfixturevalue(folder)
    trained = train(configured(folder, lists, tmp_path / "model", **stated))
    with (
        Encoder.from_pretrained(folder, **stated) as encoder,
        ResRank.from_pretrained(trained) as model,
    ):
        assert model.encoder.fingerprint == encoder.fingerprint
        np.testing.assert_array_equal(
            model.encoder.encode_documents(TOPICS), encoder.encode_documents(TOPICS)
        )


def test_a_reranker_with_a_listwise_adapter_is_refused_before_training(lists, tmp_path):
    config = configured("minilm", lists, tmp_path / "x", reranker_from="e2rank-minilm")
    with pytest.raises(ValueError, match="has a listwise adapter already"):
        train(config)


def test_gradient_checkpointing_gives_the_same_weights(tiny_bert, lists, tmp_path):
    heads = [
        load_file(
            train(
                configured(
                    tiny_bert,
                    lists,
                    tmp_path / str(checkpointing),
                    mode="joint",
                    trainer={CHECKPOINTING: checkpointing},
                )
            )
            / "head.safetensors"
        )
        for checkpointing in (False, True)
    ]
    for name, expected in heads[0].items():
        torch.testing.assert_close(heads[1][name], expected)


def test_another_backbone_of_another_width_reads_the_vectors_through_a_projection(
    tiny_bert, tiny_qwen3, bert, lists, tmp_path
):
    with Encoder.from_pretrained(tiny_qwen3, pooling="last", prompts="e2rank") as qwen3:
        reranker = qwen3.save(tmp_path / "qwen3")
    config = configured(
        tiny_bert,
        lists,
        tmp_path / "model",
        reranker_from=str(reranker),
        layout={"projection": "linear", "query_vector": "end"},
    )
    with load_reranker(train(config)) as trained:
        assert trained.encoder.fingerprint == bert.fingerprint
        assert trained.model._reranker.recipe.pooling == "last"


def test_lora_weights_are_merged_into_the_saved_reranker(tiny_bert, lists, tmp_path):
    config = configured(tiny_bert, lists, tmp_path / "model", lora={"rank": 4})
    folder = train(config)
    before = load_file(tiny_bert / "model.safetensors")
    after = load_file(folder / "reranker" / "model.safetensors")
    assert set(after) == set(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "encoder.layer.0.attention.self.query.weight" in changed
    assert "embeddings.word_embeddings.weight" not in changed


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    tiny_bert, lists, tmp_path, monkeypatch
):
    def config(name, **trainer):
        steps = {"max_steps": 6, "num_train_epochs": 6, "save_steps": 3, "save_strategy": "steps"}
        return configured(tiny_bert, lists, tmp_path / name, trainer={**steps, **trainer})

    whole = train(config("whole"))
    stopped = config("stopped")

    class Killed(Exception):
        pass

    step = StageTrainer.training_step

    def killed_in_the_fifth(self, *arguments, **options):
        if self.state.global_step == 4:
            raise Killed
        return step(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", killed_in_the_fifth)
        with pytest.raises(Killed):
            train(stopped)
    resumed = train(stopped, resume=True)
    for name in ("head.safetensors", "reranker/model.safetensors"):
        expected, found = load_file(whole / name), load_file(resumed / name)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": {"residual": "twice"}}, "layout.residual"),
        ({"mode": "adapter"}, "mode"),
        ({"mode": "joint", "vectors": "x"}, "vectors: .*documents are not frozen"),
        ({"ranknet_weight": 0, "info_nce_weight": 0}, "nothing is trained"),
        ({"order": "random"}, "order"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny_bert, lists, tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason):
        configured(tiny_bert, lists, tmp_path, **changes)
