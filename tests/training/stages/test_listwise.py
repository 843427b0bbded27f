"""Stage 2 learns its lists, goes on where it stopped, and leaves the base alone."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.training import train
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.sources import read_dev
from tests.training.conftest import TOPICS, ndcg, stop_in_the_sixth_step


def configured(model, lists, output, *, trainer=None, **changes):
    return ListwiseConfig.model_validate(
        {
            "init_from": str(model),
            "output": output,
            "mode": "adapter",
            "lora": {"rank": 4},
            "data": [{"path": lists}],
            "list_size": 8,
            "prompt": {"depths": [4]},
            "dropout": 0.0,
            "query_weight": 0.0,
            "trainer": {
                "max_steps": 8,
                "per_device_train_batch_size": 4,
                "learning_rate": 5e-3,
                "use_cpu": True,
                "disable_tqdm": True,
                "seed": 1,
                **(trainer or {}),
            },
            **changes,
        }
    )


def adapter_weights(folder):
    return load_file(folder / "listwise_adapter" / "adapter_model.safetensors")


def test_an_adapter_leaves_the_vectors_of_the_base_and_its_files(tiny_bert, lists, tmp_path):
    weights = tiny_bert / "model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).digest()
    folder = train(configured(tiny_bert, lists, tmp_path / "model"))
    assert hashlib.sha256(weights.read_bytes()).digest() == before
    with Encoder.from_pretrained(folder) as trained, Encoder.from_pretrained(tiny_bert) as base:
        assert trained.fingerprint == base.fingerprint
        np.testing.assert_array_equal(
            trained.encode_documents(TOPICS), base.encode_documents(TOPICS)
        )


def test_feedback_is_trained_through_and_saved(tiny_bert, lists, tmp_path):
    feedback = {"lexical_weight": 0.7, "temperature": 0.4, "weight": 0.3}
    kept = tmp_path / "vectors"
    config = configured(
        tiny_bert, lists, tmp_path / "model", feedback=feedback, vectors=kept, query_weight=0.5
    )
    with Encoder.from_pretrained(train(config)) as trained:
        assert trained.recipe.feedback == Feedback(**feedback)
        assert [path.name for path in kept.iterdir()] == [f"{trained.fingerprint}.npz"]
    plain = configured(tiny_bert, lists, tmp_path / "plain", query_weight=0.5)
    with Encoder.from_pretrained(train(plain)) as trained:
        assert trained.recipe.feedback is None
    found, other = adapter_weights(tmp_path / "model"), adapter_weights(tmp_path / "plain")
    assert any(not torch.equal(found[name], other[name]) for name in found)


def logged(folder, part):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [each[part] for each in map(json.loads, lines) if part in each]


def test_an_anchor_keeps_the_adapter_near_the_untrained_prompt(tiny_bert, lists, tmp_path):
    trainer = {"logging_steps": 1, "max_steps": 20}
    free = configured(tiny_bert, lists, tmp_path / "free", anchor=1e-6, trainer=trainer)
    held = configured(tiny_bert, lists, tmp_path / "held", anchor=100.0, trainer=trainer)
    moved, kept = (logged(train(config), "anchor") for config in (free, held))
    assert moved[0] == pytest.approx(0.0, abs=1e-6)  # the adapter begins as the base
    assert kept[-1] < 0.2 * moved[-1]


def test_a_counterfactual_is_trained_and_logged(tiny_bert, lists, tmp_path):
    config = configured(
        tiny_bert,
        lists,
        tmp_path / "model",
        counterfactual=5.0,
        info_nce_weight=1e-3,
        ranknet_weight=0.0,
        trainer={"logging_steps": 1, "max_steps": 40},
    )
    missed = logged(train(config), "counterfactual")
    assert missed[0] == pytest.approx(0.05, abs=0.03)
    assert missed[-1] < 0.7 * missed[0]


def test_a_counterfactual_needs_a_second_query(tiny_bert, lists, tmp_path):
    trainer = {"per_device_train_batch_size": 1}
    config = configured(tiny_bert, lists, tmp_path / "m", counterfactual=1.0, trainer=trainer)
    with pytest.raises(ValueError, match="a batch has one query: set trainer"):
        train(config)


def test_the_final_score_is_trained_and_saved(tiny_bert, lists, tmp_path):
    evidence = {"words": 2.0, "expansion": 0.0}
    losses = {}
    for name, changes in {"words": {"evidence": evidence}, "plain": {}}.items():
        config = configured(
            tiny_bert,
            lists,
            tmp_path / name,
            trainer={"max_steps": 1, "logging_steps": 1},
            **changes,
        )
        (losses[name],) = logged(train(config), "ranknet")
    assert losses["words"] != pytest.approx(losses["plain"], abs=1e-3)
    with Encoder.from_pretrained(tmp_path / "words") as trained:
        assert trained.recipe.evidence == Evidence(**evidence)
    with Encoder.from_pretrained(tmp_path / "plain") as trained:
        assert trained.recipe.evidence is None


def test_joint_training_moves_documents_and_says_so(tiny_bert, lists, tmp_path):
    config = configured(tiny_bert, lists, tmp_path / "model", mode="joint", lora=None)
    with (
        Encoder.from_pretrained(train(config)) as trained,
        Encoder.from_pretrained(tiny_bert) as base,
    ):
        assert trained.fingerprint != base.fingerprint
        moved = trained.encode_documents(TOPICS) - base.encode_documents(TOPICS)
        assert np.abs(moved).max() > 0.01


@pytest.mark.parametrize("mode", ["adapter", "joint"])
def test_all_files_of_a_run_follow_the_umask(tiny_bert, lists, tmp_path, mode):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    lora = {"rank": 4} if mode == "adapter" else None
    config = configured(tiny_bert, lists, tmp_path / "model", mode=mode, lora=lora, trainer=saving)
    before = os.umask(0o027)
    try:
        folder = train(config)
    finally:
        os.umask(before)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) == 3
    assert {str(path): oct(path.stat().st_mode & 0o777) for path in files} == {
        str(path): oct(0o640) for path in files
    }


@pytest.mark.parametrize("mode", ["adapter", "joint"])
def test_eight_lists_of_chance_are_learnt_by_heart(tiny_bert, lists, tmp_path, mode):
    config = configured(
        tiny_bert,
        lists,
        tmp_path / "model",
        mode=mode,
        lora={"rank": 16} if mode == "adapter" else None,
        info_nce_weight=0.0,
        ranknet_temperature=0.02,  # frozen vectors of a random model are nearly parallel
        trainer={"max_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 1e-2},
    )
    with Encoder.from_pretrained(tiny_bert) as base:
        assert ndcg(ListwiseReranker(base), lists) < 0.9
    with Encoder.from_pretrained(train(config)) as trained:
        assert ndcg(ListwiseReranker(trained), lists) == pytest.approx(1.0)


def test_a_stopped_run_goes_on_to_the_weights_of_an_unbroken_one(
    tiny_bert, lists, tmp_path, monkeypatch
):
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8}
    whole = train(configured(tiny_bert, lists, tmp_path / "whole", trainer=saving))
    config = configured(tiny_bert, lists, tmp_path / "broken", trainer=saving)
    stop_in_the_sixth_step(config, monkeypatch)
    resumed = train(config, resume=True)
    expected = adapter_weights(whole)
    for name, tensor in adapter_weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_accumulated_ranknet_is_that_of_the_whole_batch(tiny_bert, lists, tmp_path):
    weights = []
    for size, accumulation in ((8, 1), (2, 4)):
        config = configured(
            tiny_bert,
            lists,
            tmp_path / f"batch{size}",
            info_nce_weight=0.0,
            trainer={
                "max_steps": 1,
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": accumulation,
                "max_grad_norm": 0,
                "optim": "sgd",
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "learning_rate": 1.0,
            },
        )
        weights.append(adapter_weights(train(config)))
    moved = [name for name in weights[0] if "lora_B" in name]
    assert max(float(weights[0][name].abs().max()) for name in moved) > 1e-3
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("pictures")
def test_a_run_records_what_it_was(tiny_bert, lists, tmp_path):
    folder = train(configured(tiny_bert, lists, tmp_path / "m", trainer={"logging_steps": 2}))
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["config"]["lora"]["rank"] == 4
    assert record["data"][0]["examples"] == 8
    digest = hashlib.sha256(lists.read_bytes()).hexdigest()
    assert record["data"][0]["sha256"] == {"lists.jsonl": digest}
    # A build of torch may name itself in one of the two: "2.13.0+cpu".
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert [each["step"] for each in logged if "ranknet" in each] == [2, 4, 6, 8]
    assert (folder / "run" / "metrics.png").stat().st_size > 1000


def test_dev_sets_are_measured_plain_and_reranked_and_the_best_is_kept(tiny_bert, lists, tmp_path):
    config = configured(
        tiny_bert,
        lists,
        tmp_path / "model",
        dev=[{"path": lists}],
        patience=1,
        trainer={"max_steps": 40, "eval_steps": 5, "save_steps": 5, "learning_rate": 1e-2},
    )
    folder = train(config)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    measured = [each for each in map(json.loads, lines) if "eval_mean" in each]
    assert len({each["eval_retrieve"] for each in measured}) == 1  # frozen
    means = [(each["eval_retrieve"] + each["eval_rerank"]) / 2 for each in measured]
    assert means == pytest.approx([each["eval_mean"] for each in measured])
    best = max(each["eval_lists_rerank"] for each in measured)
    with Encoder.from_pretrained(folder) as trained:
        (dev,) = read_dev(config.dev, trained, None, seed=0)
        measured = dev.measure(trained, None, ListwiseReranker(trained))
        assert measured["rerank"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trainer": {"max_stepz": 1}}, r"trainer\.max_stepz is not an argument"),
        ({"trainer": {"output_dir": "x"}}, "trainer.output_dir is set by the training itself"),
        ({"positive": "known"}, 'positive is "known", but the example of .* names none'),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    tiny_bert, lists, tmp_path, changes, reason
):
    with pytest.raises(ValueError, match=reason):
        train(configured(tiny_bert, lists, tmp_path / "model", **changes))


def test_a_run_does_not_write_over_another(tiny_bert, lists, tmp_path):
    config = configured(tiny_bert, lists, tmp_path / "model", trainer={"max_steps": 1})
    train(config)
    with pytest.raises(
        FileExistsError, match=r"holds the record of a training run: go on with it \(resume"
    ):
        train(config)


def test_an_adapter_is_not_trained_on_top_of_another(tiny_bert, lists, tmp_path):
    first = train(configured(tiny_bert, lists, tmp_path / "first", trainer={"max_steps": 1}))
    with pytest.raises(ValueError, match=r"has a listwise adapter already.*begin from its base"):
        train(configured(first, lists, tmp_path / "second"))
