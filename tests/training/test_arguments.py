"""Every argument of transformers' trainer is used, or refused by its name."""

from __future__ import annotations

import json
from dataclasses import fields
from enum import Enum
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from transformers import TrainingArguments

from e2rank_rag.training import train
from e2rank_rag.training.arguments import REFUSED, training_arguments
from e2rank_rag.training.config import ADAPTER_CONFIG, ListwiseConfig, read_config
from e2rank_rag.training.loop import StageTrainer

HINTS = get_type_hints(TrainingArguments)

TEXTS = {bool: ("yes", True), int: ("3", 3), float: ("2e-1", 0.2), dict: ("{}", {})}
"""By type, how a user writes a value that is no default."""

STATED = {
    "log_level": ("info", "info"),
    "log_level_replica": ("info", "info"),
    "dataloader_prefetch_factor": ("3", 3),
    "dataloader_multiprocessing_context": ("fork", "fork"),
    "disable_tqdm": ("on", True),
    "bf16": ("on", True),
    "fp16": ("no", False),
    "tf32": ("no", False),
    "save_strategy": ("no", "no"),
    "logging_strategy": ("no", "no"),
    "eval_strategy": ("no", "no"),
    "lr_scheduler_type": ("cosine", "cosine"),
    "optim": ("sgd", "sgd"),
    "save_steps": ("2e-1", 0.2),
    "report_to": ("none", []),
    "load_best_model_at_end": ("no", False),
    "eval_on_start": ("no", False),
    "torch_compile": ("no", False),
    "use_liger_kernel": ("no", False),
    "liger_kernel_config": ("{rope: no}", {"rope": False}),
    "activation_checkpointing_kwargs": ("{use_reentrant: no}", {"use_reentrant": False}),
    "gradient_checkpointing_kwargs": ("{use_reentrant: no}", {"use_reentrant": False}),
    "lr_scheduler_kwargs": ("{min_lr_rate: 1e-1}", {"min_lr_rate": 0.1}),
    "optim_target_modules": ("[a, b]", ["a", "b"]),
    "debug": ("underflow_overflow", None),
    "use_cpu": ("yes", True),
    "deepspeed": ("null", None),
    "ddp_backend": ("null", None),
    "ddp_timeout": ("60", 60),
    "dataloader_pin_memory": ("no", False),
    "full_determinism": ("no", False),
}
NEEDED = {
    "dataloader_prefetch_factor": {"dataloader_num_workers": 2},
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 2},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True},
}


def configured(tmp_path, *, dev=False, patience=None, **trainer):
    source = [{"path": tmp_path / "x.jsonl"}]
    return ListwiseConfig(
        init_from="minilm",
        output=tmp_path / "out",
        mode="joint",
        data=source,
        dev=source if dev else [],
        patience=patience,
        trainer={"use_cpu": True, **trainer},
    )


def written(name):
    """An argument as text, and the value that it has then."""
    if name in STATED:
        return STATED[name]
    kinds = [kind for kind in TEXTS if kind in (HINTS[name], *get_args(HINTS[name]))]
    return TEXTS[kinds[0]] if kinds else ("some", "some")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", [each.name for each in fields(TrainingArguments) if each.init])
def test_a_setting_that_is_given_is_used(tmp_path, name):
    text, expected = written(name)
    path = tmp_path / "stage.yaml"
    settings = json.loads(configured(tmp_path).model_dump_json(exclude_none=True))
    settings["trainer"] = {"use_cpu": True, **NEEDED.get(name, {})}
    path.write_text(yaml.safe_dump(settings))
    config = read_config(path, [f"trainer.{name}={text}"])
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"^trainer\.{name} (is|would) "):
            training_arguments(config, tmp_path, {})
        return
    found = getattr(training_arguments(config, tmp_path, {}), name)
    found = found.value if isinstance(found, Enum) else found
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"max_stepz": 1}, r"trainer\.max_stepz is not an argument .* did you mean max_steps"),
        ({"max_steps": "many"}, r"trainer\.max_steps: .* got 'many'"),
        ({"max_steps": True}, r"trainer\.max_steps: a number is needed, not true"),
        ({"max_steps": 1.5}, r"trainer\.max_steps: .* got 1\.5"),
        ({"learning_rate": "fast"}, r"trainer\.learning_rate: .* got 'fast'"),
        ({"bf16": "maybe"}, r"trainer\.bf16: .* got 'maybe'"),
        ({"save_strategy": "never"}, r"trainer\.save_strategy: Input should be 'no', .* 'never'"),
        ({"save_strategy": False}, r"trainer\.save_strategy: Input should be 'no'"),
        ({"eval_strategy": "steps"}, r"trainer\.eval_strategy: there is no dev set"),
        ({"eval_on_start": True}, r"trainer\.eval_on_start: there is no dev set"),
        ({"dataloader_prefetch_factor": 2}, r"trainer: .*dataloader_prefetch_factor"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, trainer, said):
    with pytest.raises(ValueError, match=said):
        training_arguments(configured(tmp_path, **trainer), tmp_path, {})


def test_patience_without_measuring_is_refused(tmp_path):
    with pytest.raises(ValueError, match="patience: there is no dev set"):
        training_arguments(configured(tmp_path, patience=2), tmp_path, {})
    config = configured(tmp_path, patience=2, dev=True, save_strategy="no")
    with pytest.raises(ValueError, match="patience: it needs eval_strategy and save_strategy"):
        training_arguments(config, tmp_path, {})


def test_without_saved_states_the_last_one_is_the_model(tmp_path, caplog):
    config = configured(tmp_path, dev=True, save_strategy="no")
    found = training_arguments(config, tmp_path, {})
    assert (found.save_strategy.value, found.load_best_model_at_end) == ("no", False)
    assert "that of the last step, not of the best" in caplog.text


@pytest.mark.parametrize("trainer", [{"eval_steps": 5}, {"eval_strategy": "epoch"}, {}])
def test_states_are_saved_where_dev_sets_are_measured(tmp_path, trainer):
    found = training_arguments(configured(tmp_path, dev=True, **trainer), tmp_path, {})
    assert found.load_best_model_at_end
    assert found.save_strategy.value == found.eval_strategy.value
    assert found.save_steps == found.eval_steps or found.eval_strategy.value == "epoch"


CONFIGS = sorted(ADAPTER_CONFIG.parent.glob("*.yaml"))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_as_it_ships_keeps_two_states(tmp_path, path):
    given = {"init_from": "minilm", "output": tmp_path, "data": [{"path": tmp_path / "x"}]}
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    lacking = {name: value for name, value in given.items() if name not in settings}
    config = read_config(path, ["trainer.use_cpu=yes"], lacking)
    found = training_arguments(config, tmp_path, {})
    assert found.save_total_limit == 2
    assert found.save_steps <= 0.5


@pytest.fixture
def loaders(monkeypatch):
    """The loaders of the runs of a test."""
    made = []
    before = StageTrainer.get_train_dataloader

    def kept(self):
        made.append(before(self))
        return made[-1]

    monkeypatch.setattr(StageTrainer, "get_train_dataloader", kept)
    return made


def trained(tiny_bert, lists, output, **trainer):
    config = ListwiseConfig(
        init_from=tiny_bert,
        output=output,
        mode="joint",
        data=[{"path": lists}],
        list_size=4,
        prompt={"depths": [0, 2, 4], "order": "shuffled"},
        dropout=0.0,
        trainer={
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            **trainer,
        },
    )
    return train(config)


def test_workers_load_the_batches_that_one_process_would(tiny_bert, lists, tmp_path, loaders):
    alone = trained(tiny_bert, lists, tmp_path / "alone")
    workers = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3}
    together = trained(tiny_bert, lists, tmp_path / "together", **workers)
    assert [loader.num_workers for loader in loaders] == [0, 2]
    assert [loader.prefetch_factor for loader in loaders] == [None, 3]
    one, two = (
        np.fromfile(folder / "model.safetensors", dtype=np.uint8) for folder in (alone, together)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs a GPU")
def test_batches_are_pinned(tiny_bert, lists, tmp_path, loaders):
    trained(tiny_bert, lists, tmp_path / "x", use_cpu=False, dataloader_pin_memory=True)
    assert loaders[0].pin_memory
