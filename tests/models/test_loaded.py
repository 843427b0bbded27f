"""Models in memory are counted."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from e2rank_rag.models.cpu import OneDnnLinear
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.loaded import (
    LoadKey,
    RecentVectors,
    acquire,
    load_encoder,
    loaded_models,
    release,
    stamp,
)
from e2rank_rag.rerankers import load_reranker


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


def test_the_longest_not_asked_for_is_forgotten_first():
    recent = RecentVectors(2)
    for key in ("a", "b"):
        recent.put(key, np.full(3, ord(key), dtype=np.float32))
    assert recent.get("a") is not None
    recent.put("c", np.zeros(3, dtype=np.float32))
    assert recent.get("b") is None
    np.testing.assert_array_equal(recent.get("a"), [97.0] * 3)


@pytest.fixture
def passes(tiny_bert):
    """An encoder, and the numbers of texts of each forward pass so far."""
    with Encoder.from_pretrained(tiny_bert) as encoder:
        encoder.loaded.queries = RecentVectors(256)  # other tests ask the same model
        sizes = []
        hook = encoder.loaded.transformer.register_forward_hook(
            lambda module, given, options, output: sizes.append(len(options["input_ids"])),
            with_kwargs=True,
        )
        yield encoder, sizes
        hook.remove()


def test_a_query_asked_again_costs_no_pass_whichever_encoder_of_the_model_is_asked(passes):
    encoder, sizes = passes
    first = encoder.encode_queries(["where is paris?", "who sang it?"])
    with encoder.with_recipe(encoder.recipe.model_copy(update={"query_weight": 0.5})) as other:
        again = other.encode_queries(["who sang it?", "what is new?", "where is paris?"])
    assert sizes == [2, 1]
    np.testing.assert_array_equal(again[[2, 0]], first)


def test_a_query_under_another_prompt_or_of_fewer_dimensions_is_another(passes):
    encoder, sizes = passes
    encoder.encode_queries(["who sang it?"])
    prompts = encoder.recipe.prompts.model_copy(update={"query": "query: {query}"})
    for change in ({"prompts": prompts}, {"truncate_dim": 16}):
        with encoder.with_recipe(encoder.recipe.model_copy(update=change)) as other:
            other.encode_queries(["who sang it?"])
    assert sizes == [1, 1, 1]


def test_what_the_caller_does_to_a_vector_is_not_remembered(passes):
    encoder, _ = passes
    first = encoder.encode_queries(["who sang it?"])
    kept = first.copy()
    first[:] = 0.0
    again = encoder.encode_queries(["who sang it?"])
    again[:] = 0.0
    np.testing.assert_array_equal(encoder.encode_queries(["who sang it?"]), kept)
