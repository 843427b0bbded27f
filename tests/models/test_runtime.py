"""Models in memory are shared and counted; one thread per device: order, errors, closing."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from e2rank_rag.models.cpu import OneDnnLinear
from e2rank_rag.models.encoder import Encoder, load_encoder
from e2rank_rag.models.runtime import LoadKey, acquire, loaded_models, release, stamp, torch_dtype
from e2rank_rag.rerankers import load_reranker
from e2rank_rag.threads import usable_threads


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


@pytest.mark.parametrize("system", ["xlmr", "resrank", "rankt5"])
def test_a_model_that_nobody_refers_to_is_freed(system, request):
    folder = request.getfixturevalue(f"tiny_{system}")
    before = loaded_models()
    reranker = load_reranker(folder)
    assert loaded_models() > before
    del reranker
    assert loaded_models() == before


def test_a_model_that_cannot_be_opened_as_asked_is_freed(tiny_xlmr):
    before = loaded_models()
    with pytest.raises(ValueError, match="truncate_dim"):
        Encoder.from_pretrained(tiny_xlmr, truncate_dim=1000)
    assert loaded_models() == before


def test_a_model_may_be_given_up_in_the_thread_that_loads_another(key, tiny_xlmr):
    """As where the garbage collector runs in it: the thread that asked holds the lock."""
    held = [Encoder.from_pretrained(tiny_xlmr)]
    before = loaded_models()

    def load(key):
        held.clear()
        return load_encoder(key)

    model = acquire(key, load)
    assert loaded_models() == before  # one more, one less
    release(key, model)
    assert loaded_models() == before - 1


def test_loading_leaves_no_thread_of_torch_with_the_caller(key):
    threads = []

    def load(key):
        threads.append(threading.current_thread())
        return load_encoder(key)

    release(key, acquire(key, load))
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()


def test_the_last_release_frees_the_weights_and_takes_no_more_calls(key):
    model = acquire(key, load_encoder)
    release(key, model)
    assert not hasattr(model, "transformer")
    with pytest.raises(RuntimeError, match="closed"):
        model.worker.run(lambda: 1)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False)],
)
def test_float32_and_bfloat16_on_a_cpu_compute_by_onednn(key, dtype, expected):
    one = LoadKey(key.folder, key.stamp, dtype, key.device, None)
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


def test_vectors_are_the_same_however_many_threads_compute_them(tiny_bert):
    texts = [f"{word} " * (1 + number % 40) for number, word in enumerate(["cat", "bridge"] * 150)]
    with (
        Encoder.from_pretrained(tiny_bert, threads=1) as one,
        Encoder.from_pretrained(tiny_bert, threads=2) as two,
    ):
        expected = one.encode_documents(texts)
        assert one.loaded.worker.run(torch.get_num_threads) == 1
        np.testing.assert_allclose(two.encode_documents(texts), expected, atol=1e-6)
        assert two.loaded.worker.run(torch.get_num_threads) == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused_with_the_way_out(tiny_bert, threads):
    with pytest.raises(ValueError, match=f"threads must be 1 or more, got {threads}; None"):
        Encoder.from_pretrained(tiny_bert, threads=threads)


def test_without_a_number_a_model_takes_what_its_thread_had_before_another_model(tiny_bert):
    with Encoder.from_pretrained(tiny_bert) as usual:
        before = usual.loaded.worker.run(torch.get_num_threads)
        with Encoder.from_pretrained(tiny_bert, threads=3) as other:
            assert other.loaded.worker.run(torch.get_num_threads) == 3
        assert usual.loaded.worker.run(torch.get_num_threads) == before
        assert before == min(before, usable_threads())


def test_an_unknown_dtype_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['auto', 'float32', 'bfloat16', 'float16'\].*'int8'"):
        torch_dtype("int8", torch.device("cpu"))
