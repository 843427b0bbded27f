"""Models in memory are counted."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2rank_rag.models.cpu import OneDnnLinear
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.loaded import (
    LoadKey,
    acquire,
    load_encoder,
    loaded_models,
    release,
    stamp,
)


@pytest.fixture
def key(tiny_bert):
    return LoadKey(tiny_bert, stamp(tiny_bert), torch.float32, torch.device("cpu"), "eager")


def test_a_model_is_loaded_once_however_many_threads_ask(key):
    loads = []

    def load(key):
        loads.append(key)
        return load_encoder(key)

    before = loaded_models()
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: acquire(key, load), range(8)))
    assert len(loads) == 1
    assert len({id(model) for model in models}) == 1
    assert loaded_models() == before + 1
    for model in models:
        assert loaded_models() == before + 1
        release(key, model)
    assert loaded_models() == before


def test_the_last_release_ends_the_thread_and_frees_the_weights(key):
    model = acquire(key, load_encoder)
    release(key, model)
    assert not hasattr(model, "transformer")
    with pytest.raises(RuntimeError, match="closed"):
        model.worker.run(lambda: 1)


def test_float32_on_a_cpu_computes_by_onednn_and_other_dtypes_do_not(key):
    half = LoadKey(key.folder, key.stamp, torch.bfloat16, key.device, None)
    for one, expected in ((key, True), (half, False)):
        model = acquire(one, load_encoder)
        linear = model.transformer.encoder.layer[0].intermediate.dense
        assert isinstance(linear, OneDnnLinear) is expected
        release(one, model)


def test_a_folder_whose_weights_were_overwritten_is_another_model(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    with Encoder.from_pretrained(folder) as before:
        path = folder / "model.safetensors"
        weights = {name: tensor + 0.5 for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        with Encoder.from_pretrained(folder) as after:
            assert after.fingerprint != before.fingerprint
            assert loaded_models() >= 2
