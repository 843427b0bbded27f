"""The base in training: its dropout, and the instructions of tasks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from e2rank_rag.models.weights import load_transformer
from e2rank_rag.prompts import TASKS, Prompts
from e2rank_rag.recipe import Recipe
from e2rank_rag.training.base_model import task_recipe, trainable_model, with_options
from e2rank_rag.training.config import ContrastiveConfig


def configured(tmp_path, **changes):
    data = [{"path": tmp_path / "x.jsonl"}]
    return ContrastiveConfig(init_from="x", output=tmp_path / "out", data=data, **changes)


@pytest.mark.parametrize("folder", ["tiny_bert", "tiny_qwen3", "tiny_xlmr"])
def test_a_dropout_that_is_given_is_used(request, tmp_path, folder):
    weights = request.getfixturevalue(folder)
    torch.manual_seed(0)
    ids = torch.randint(10, 60, (2, 8))
    for share, same in ((0.0, True), (0.5, False)):
        model = trainable_model(configured(tmp_path, dropout=share), weights).train()
        one, two = (model(input_ids=ids).last_hidden_state for _ in range(2))
        assert torch.equal(one, two) == same


def test_a_dropout_that_a_model_does_not_have_is_refused(tiny_bert, tmp_path):
    model = load_transformer(tiny_bert, dtype=torch.float32)
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Dropout):
                setattr(module, name, nn.Identity())
    with pytest.raises(ValueError, match="dropout: BertModel has none; leave it out"):
        with_options(model, configured(tmp_path, dropout=0.1))
    with_options(model, configured(tmp_path, dropout=0.0))


INSTRUCTED = Recipe(pooling="last", prompts=Prompts(query="Instruct: {task}\nQuery:{query}"))


def test_a_task_is_a_name_or_a_sentence():
    assert task_recipe(INSTRUCTED, None) == INSTRUCTED
    assert task_recipe(INSTRUCTED, "scifact").prompts.task == TASKS["scifact"]
    stated = task_recipe(INSTRUCTED, "Given a claim, find its source").prompts
    assert stated.query_text("q") == "Instruct: Given a claim, find its source\nQuery:q"
    with pytest.raises(ValueError, match="'scfact'"):
        task_recipe(INSTRUCTED, "scfact")


def test_a_model_without_instructions_keeps_its_prompts():
    plain = Recipe(pooling="mean", prompts=Prompts())
    assert task_recipe(plain, "anything") == plain
