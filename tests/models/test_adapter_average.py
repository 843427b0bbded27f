"""The mean of adapters changes the weights by the mean of what they change."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from e2rank_rag.errors import CheckpointError
from e2rank_rag.feedback import Feedback
from e2rank_rag.models.adapter import quiet_peft, with_adapter
from e2rank_rag.models.adapter_average import average_adapters
from e2rank_rag.models.e2rank_folder import save_adapter
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.weights import load_transformer

QUERIES, LISTS = ["cats", "bread rises"], [["cats purr", "dogs bark"], []]


def adapted(base, folder, *, seed, rank, digest=None, recipe=None, **options):
    """A model folder with a random adapter, and the weights with it merged in."""
    transformer = load_transformer(base.weights_folder, dtype=torch.float32)
    targets = options.pop("targets", ["query", "value"])
    config = LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=targets, **options)
    with quiet_peft():
        model = get_peft_model(transformer, config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    save_adapter(folder, model, recipe or base.recipe, base=base.name, digest=digest or base.digest)
    return {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}


@pytest.fixture(scope="module")
def base(tiny_bert):
    with Encoder.from_pretrained(tiny_bert) as encoder:
        yield encoder


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, 1.7])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_the_mean_times_the_scale(base, tmp_path, scale, rslora):
    whole = [
        adapted(base, tmp_path / "a", seed=1, rank=2),
        adapted(base, tmp_path / "b", seed=2, rank=4, use_rslora=rslora),
        adapted(base, tmp_path / "c", seed=3, rank=3),
    ]
    output = average_adapters([tmp_path / name for name in "abc"], tmp_path / "mean", scale=scale)
    transformer = load_transformer(base.weights_folder, dtype=torch.float32)
    plain = transformer.state_dict()
    found = with_adapter(transformer, output / "listwise_adapter").state_dict()
    for name, tensor in plain.items():
        mean = sum(weights[name] - tensor for weights in whole) / 3
        torch.testing.assert_close(found[name], tensor + scale * mean, rtol=0, atol=1e-6)


def test_one_adapter_alone_is_scaled_and_stays_as_small(base, tmp_path):
    adapted(base, tmp_path / "a", seed=1, rank=2)
    output = average_adapters([tmp_path / "a"], tmp_path / "deep" / "half", scale=0.5)
    one, half = (
        load_file(folder / "listwise_adapter" / "adapter_model.safetensors")
        for folder in (tmp_path / "a", output)
    )
    assert {name: each.shape for name, each in one.items()} == {
        name: each.shape for name, each in half.items()
    }
    with Encoder.from_pretrained(output) as encoder:
        assert encoder.fingerprint == base.fingerprint
        np.testing.assert_array_equal(
            encoder.encode_documents(QUERIES), base.encode_documents(QUERIES)
        )


def test_scale_0_is_the_untrained_prompt(base, tmp_path):
    adapted(base, tmp_path / "a", seed=1, rank=2)
    output = average_adapters([tmp_path / "a"], tmp_path / "none", scale=0.0)
    with Encoder.from_pretrained(output) as encoder:
        np.testing.assert_allclose(
            encoder.encode_listwise(QUERIES, LISTS).embeddings,
            base.encode_listwise(QUERIES, LISTS).embeddings,
            atol=1e-6,
        )


def test_the_mean_has_the_recipe_of_the_first(base, tmp_path):
    recipe = base.recipe.model_copy(update={"feedback": Feedback(weight=0.3)})
    adapted(base, tmp_path / "a", seed=1, rank=2, recipe=recipe)
    adapted(base, tmp_path / "b", seed=2, rank=2)
    output = average_adapters([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    with Encoder.from_pretrained(output) as encoder:
        assert encoder.recipe.feedback == Feedback(weight=0.3)


def test_adapters_beside_their_own_weights_are_averaged(base, tmp_path):
    """`Encoder.save` writes a folder that is its own base."""
    whole = adapted(base, tmp_path / "a", seed=1, rank=2)
    with Encoder.from_pretrained(tmp_path / "a") as encoder:
        encoder.save(tmp_path / "alone")
    output = average_adapters([tmp_path / "alone"], tmp_path / "mean")
    assert json.loads((output / "e2rank.json").read_text())["adapter"]["base"] == "../alone"
    with Encoder.from_pretrained(output) as encoder:
        found = encoder.loaded.listwise.state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_what_has_no_mean_is_refused_before_anything_is_written(base, tmp_path):
    adapted(base, tmp_path / "a", seed=1, rank=2)
    adapted(base, tmp_path / "elsewhere", seed=2, rank=2, digest="another")
    adapted(base, tmp_path / "layers", seed=2, rank=2, targets=["query"])
    adapted(base, tmp_path / "dora", seed=2, rank=2, use_dora=True)
    adapted(base, tmp_path / "pattern", seed=2, rank=2, rank_pattern={"query": 3})
    base.save(tmp_path / "plain")
    a, output = tmp_path / "a", tmp_path / "out"
    for others, error, reason in (
        (["elsewhere"], ValueError, "are adapters for different weights"),
        (["layers"], ValueError, r"adapt different layers, such as .*value"),
        (["dora"], CheckpointError, "use_dora = 'True', which is not supported: only adapters"),
        (["pattern"], CheckpointError, "rank_pattern = .* is not supported"),
        (["plain"], CheckpointError, "plain has no listwise adapter"),
        (["nowhere"], CheckpointError, "there is no model folder"),
    ):
        with pytest.raises(error, match=reason):
            average_adapters([a, *(tmp_path / name for name in others)], output)
    with pytest.raises(ValueError, match="there are no adapters to average"):
        average_adapters([], output)
    for scale in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale must be 0 or more and finite"):
            average_adapters([a], output, scale=scale)
    assert not output.exists()
    with pytest.raises(ValueError, match="is one of the models to average"):
        average_adapters([a], tmp_path / "." / "a")


def test_matrices_without_their_pair_or_of_another_rank_are_refused(base, tmp_path):
    adapted(base, tmp_path / "a", seed=1, rank=2)
    for case in ("pair", "rank", "vector"):
        copied = shutil.copytree(tmp_path / "a", tmp_path / case)
        path = copied / "listwise_adapter" / "adapter_model.safetensors"
        weights = load_file(path)
        name = next(iter(weights))
        if case == "pair":
            del weights[name]
        else:
            weights[name] = torch.zeros(7, 7) if case == "rank" else torch.zeros(2)
        save_file(weights, path)
        with pytest.raises(CheckpointError, match="is no plain LoRA of rank 2: see its tensor"):
            average_adapters([copied], tmp_path / "out")
    save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no matrices"):
        average_adapters([copied], tmp_path / "out")
    assert not (tmp_path / "out").exists()
