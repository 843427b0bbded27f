"""A run begins in a folder of its own and goes on from what it kept."""

from __future__ import annotations

import os
import shutil

import pytest

from e2rank_rag.training import train
from e2rank_rag.training.config import STAGES

MODES = {
    "contrastive": {},
    "listwise": {"mode": "adapter", "lora": {"rank": 2}},
    "resrank": {"mode": "frozen"},
    "rankt5": {},
}


def configured(stage, base, output, lists):
    settings = {"init_from": base, "output": output, "data": [{"path": lists}], **MODES[stage]}
    trainer = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    return STAGES[stage](stage=stage, trainer=trainer, **settings)


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_to_begin_from_is_never_overwritten(
    tiny_bert, lists, tmp_path, monkeypatch, stage
):
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(base))
    for output in (base, "base", "./base"):
        with pytest.raises(ValueError, match=r"output: .*base is the folder of the model to begin"):
            train(configured(stage, base, output, lists))
    assert sorted(os.listdir(base)) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_without_a_kept_state_cannot_go_on_and_says_so(tiny_bert, lists, tmp_path, stage):
    config = configured(stage, tiny_bert, tmp_path / "out", lists)
    with pytest.raises(ValueError, match="holds no checkpoint to go on with"):
        train(config, resume=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_another_run_is_never_written_over(tiny_bert, lists, tmp_path, stage):
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "out" / "run" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(
        FileExistsError, match=r"holds the record of a training run: go on .*resume"
    ):
        train(configured(stage, tiny_bert, tmp_path / "out", lists))
