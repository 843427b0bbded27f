"""An adapter changes listwise vectors and nothing else, whoever else is encoding."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.adapter import with_adapter
from e2rank_rag.models.e2rank_folder import save_adapter
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.weights import load_transformer
from tests.kit import adapted, watchdog

DOCUMENTS = ["cats purr", "dogs bark, dogs dig", "a ferry crosses the strait", "salt slows it down"]
QUERIES = ["Query:cats", "bread rises", "the bridge"]
LISTS = [DOCUMENTS, DOCUMENTS[2:], []]


@pytest.fixture(scope="module", params=["tiny_bert", "tiny_qwen3"])
def base(request):
    options = {}
    if request.param == "tiny_qwen3":
        options = {"pooling": "last", "prompts": "e2rank"}
    folder = request.getfixturevalue(request.param)
    with Encoder.from_pretrained(folder, **options) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "model"
    model = adapted(base.weights_folder, seed=3)
    return save_adapter(folder, model, base.recipe, base=base.name, digest=base.digest)


@pytest.fixture(scope="module")
def encoder(folder):
    with Encoder.from_pretrained(folder) as encoder:
        yield encoder


def test_queries_and_documents_are_those_of_the_base(encoder, base):
    np.testing.assert_array_equal(
        encoder.encode_documents(DOCUMENTS), base.encode_documents(DOCUMENTS)
    )
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES), base.encode_queries(QUERIES))
    assert encoder.fingerprint == base.fingerprint


def test_listwise_vectors_are_those_of_the_adapter(encoder, base, tmp_path):
    ours = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    assert (
        np.abs(ours - base.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings).max()
        > 0.01
    )
    # The same by merging into a copy of the whole model, saved as a model of its own.
    whole = tmp_path / "whole"
    base.save(whole)
    merged = adapted(base.weights_folder, seed=3).merge_and_unload()
    merged.save_pretrained(whole)
    with Encoder.from_pretrained(whole) as other:
        expected = other.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_the_blend_takes_the_plain_query_of_the_base(encoder, base):
    blended = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.25).embeddings
    listwise = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    expected = 0.25 * base.encode_queries(QUERIES) + 0.75 * listwise
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(blended, expected, atol=1e-6)


def test_without_its_adapter_a_model_reads_prompts_as_its_base_does(encoder, base, tmp_path):
    with encoder.without_adapter() as plain:
        ours = plain.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
        assert plain.fingerprint == encoder.fingerprint
        np.testing.assert_array_equal(plain.encode_queries(QUERIES), base.encode_queries(QUERIES))
        plain.save(tmp_path / "plain")
    expected = base.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    with Encoder.from_pretrained(tmp_path / "plain") as saved:
        again = saved.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    np.testing.assert_allclose(again, expected, atol=1e-6)
    # The model itself keeps it.
    mine = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    assert np.abs(mine - expected).max() > 0.01


def test_a_model_without_an_adapter_has_none_to_leave_out(base):
    with pytest.raises(ValueError, match=r"has no listwise adapter to leave out"):
        base.without_adapter()


def test_only_the_matrices_of_the_adapter_are_held_twice(base, folder):
    transformer = load_transformer(base.weights_folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    twin = with_adapter(transformer, folder / "listwise_adapter")
    mine, other = dict(transformer.named_parameters()), dict(twin.named_parameters())
    assert mine.keys() == other.keys()
    apart = {name for name in mine if mine[name].data_ptr() != other[name].data_ptr()}
    assert {name.split(".")[-2] for name in apart} <= {"query", "value", "q_proj", "v_proj"}
    assert apart
    for name, tensor in transformer.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_documents_and_lists_at_the_same_time_are_each_right(encoder):
    documents = encoder.encode_documents(DOCUMENTS)
    listwise = encoder.encode_listwise(QUERIES, LISTS).embeddings

    def encode(turn):
        if turn % 2:
            return np.array_equal(encoder.encode_documents(DOCUMENTS), documents)
        return np.array_equal(encoder.encode_listwise(QUERIES, LISTS).embeddings, listwise)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(encode, range(100)))


def test_a_saved_adapter_model_stands_alone(encoder, tmp_path):
    saved = encoder.save(tmp_path / "alone")
    assert json.loads((saved / "e2rank.json").read_text())["adapter"]["base"] == "."
    with Encoder.from_pretrained(saved) as again:
        np.testing.assert_array_equal(
            again.encode_documents(DOCUMENTS), encoder.encode_documents(DOCUMENTS)
        )
        np.testing.assert_array_equal(
            again.encode_listwise(QUERIES, LISTS).embeddings,
            encoder.encode_listwise(QUERIES, LISTS).embeddings,
        )


def test_an_adapter_on_other_weights_is_refused(base, folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "model")
    recipe = json.loads((copied / "e2rank.json").read_text())
    recipe["adapter"]["digest"] = "another"
    (copied / "e2rank.json").write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match="trained on other weights than those of"):
        Encoder.from_pretrained(copied)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_of_the_adapter_is_named(folder, tmp_path, name):
    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / "listwise_adapter" / name).unlink()
    # peft would go on to a pickle of this name.
    (copied / "listwise_adapter" / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        Encoder.from_pretrained(copied)


def test_an_adapter_of_another_architecture_is_refused(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "model")
    path = copied / "listwise_adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = ["no_such_layer"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit"):
        Encoder.from_pretrained(copied)


POISONS = {
    "another method": {"peft_type": "XLORA", "adapters": {"0": "someone/adapter"}},
    "a method by number": {"peft_type": 7},
    "a module to import": {"megatron_core": "os", "megatron_config": {"a": 1}},
    "an expression": {"target_modules": "(a+)+$"},
    "an expression in a list": {"target_modules": ["(a+)+$"]},
    "expressions of ranks": {"rank_pattern": {"(a+)+$": 4}},
    "expressions of alphas": {"alpha_pattern": {"(.*)*x": 4}},
    "layers by expression": {"layers_to_transform": [0], "layers_pattern": "(a+)+"},
    "exclusions by expression": {"exclude_modules": "(a+)+$"},
    "repeated layers": {"layer_replication": [[0, 1], [0, 1]]},
    "whole modules": {"modules_to_save": ["embeddings"]},
    "tokens": {"trainable_token_indices": [0, 1]},
    "other starts": {"init_lora_weights": "pissa"},
    "a start of its own": {"init_lora_weights": "eva", "eva_config": {"rho": 2}},
    "quantisation": {"loftq_config": {"loftq_bits": 4}},
    "biases": {"bias": "all"},
    "biases of its own": {"lora_bias": True},
    "a huge rank": {"r": 2_000_000_000},
    "a rank that is none": {"r": "4"},
    "a large rank": {"r": 60_000},
    "an endless alpha": {"lora_alpha": 1e300},
    "what is to come": {"run_this": "os.system"},
}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_an_adapters_configuration_cannot_steer_anything_but_numbers(folder, tmp_path, poison):
    copied = shutil.copytree(folder, tmp_path / "model")
    path = copied / "listwise_adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **poison}))
    with watchdog(), pytest.raises(CheckpointError):
        Encoder.from_pretrained(copied)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", ""])
def test_an_adapter_is_no_link_to_elsewhere(folder, tmp_path, name):
    copied = shutil.copytree(folder, tmp_path / "model")
    linked = copied / "listwise_adapter" / name
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside the model folder"):
        Encoder.from_pretrained(copied)


@pytest.mark.parametrize("change", ["lost", "added", "foreign"])
def test_an_adapters_weights_are_those_that_it_states(folder, tmp_path, change):
    copied = shutil.copytree(folder, tmp_path / "model")
    path = copied / "listwise_adapter/adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    if change == "lost":
        del weights[name]
    elif change == "added":
        weights["base_model.model.embeddings.modules_to_save.weight"] = torch.ones(2, 2)
    else:
        weights[name] = torch.ones(4, 7)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="does not fit"):
        Encoder.from_pretrained(copied)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"0.attention.self.query": 2, "value": 3}, "alpha_pattern": {"value": 5}},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1], "layers_pattern": "layer"},
    ],
)
def test_adapters_of_peft_are_merged_as_peft_merges_them(tiny_bert, tmp_path, options):
    model = adapted(tiny_bert, seed=7, **options)
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload(safe_merge=True).state_dict()
    ours = with_adapter(load_transformer(tiny_bert, dtype=torch.float32), tmp_path).state_dict()
    assert ours.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(ours[name], tensor)
