"""Weights are read from safetensors only, checked and named by a digest."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.weights import load_transformer, weights_digest
from tests.poisons import change


@pytest.fixture
def bert_folder(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "bert")


def test_corrupt_weights_are_named(bert_folder):
    path = bert_folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (b"", b"no weights", whole[:1000], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"the weights in .* cannot be read"):
            load_transformer(bert_folder, dtype=torch.float32)


def test_pickled_weights_are_not_read(bert_folder):
    weights = load_file(bert_folder / "model.safetensors")
    torch.save(weights, bert_folder / "pytorch_model.bin")
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file; pickled weights are not"):
        load_transformer(bert_folder, dtype=torch.float32)


def test_missing_tensors_are_counted_and_named(bert_folder):
    change(bert_folder / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"lack 16 tensors of BertModel, .*layer\.2\."):
        load_transformer(bert_folder, dtype=torch.float32)


def test_a_missing_pooler_does_not_matter(bert_folder):
    path = bert_folder / "model.safetensors"
    weights = {name: t for name, t in load_file(path).items() if "pooler" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    load_transformer(bert_folder, dtype=torch.float32)


def test_tensors_of_another_shape_are_refused(bert_folder):
    change(bert_folder / "config.json", hidden_size=64)
    with pytest.raises(CheckpointError, match=r"the weights in .* cannot be read"):
        load_transformer(bert_folder, dtype=torch.float32)


def digest_of(folder, dtype=torch.float32):
    return weights_digest(load_transformer(folder, dtype=dtype))


def test_the_weights_digest_changes_with_any_tensor(bert_folder):
    before = digest_of(bert_folder)
    path = bert_folder / "model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if "pooler" not in k}
    for name in (min(weights), max(weights)):
        changed = {**weights, name: weights[name].clone()}
        changed[name].flatten()[-1] += 1.0
        save_file(changed, path, metadata={"format": "pt"})
        assert digest_of(bert_folder) != before, name


def test_a_copy_a_resaved_folder_and_bfloat16_have_the_same_digest(
    bert_folder, tiny_bert, tmp_path
):
    load_transformer(tiny_bert, dtype=torch.float32).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert (
        digest_of(tiny_bert)
        == digest_of(bert_folder)
        == digest_of(tmp_path)
        == digest_of(tiny_bert, torch.bfloat16)
    )


def test_transformer_is_in_evaluation_mode_without_cache(bert_folder):
    transformer = load_transformer(bert_folder, dtype=torch.float32)
    assert not transformer.training
    assert transformer.config.use_cache is False
