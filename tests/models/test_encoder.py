"""An encoder's options, files and behaviour under many callers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoTokenizer

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.e2rank import Backbone
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.prompts import Task
from tests.encoders import CANDIDATES, QUERIES, TEXTS, assert_unit

END = "<|endoftext|>"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


# Options


def test_truncate_dim_keeps_the_leading_dimensions_scaled_anew(tiny_qwen3, qwen3):
    with Encoder.from_pretrained(
        tiny_qwen3, pooling="last", prompts="e2rank", truncate_dim=12
    ) as short:
        assert short.dim == 12
        vectors = short.encode_documents(TEXTS)
    leading = qwen3.encode_documents(TEXTS)[:, :12]
    expected = leading / np.linalg.norm(leading, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_truncate_dim_beyond_the_model_is_refused_and_gives_the_model_back(tiny_bert):
    before = loaded_models()
    with pytest.raises(ValueError, match=r"truncate_dim is 33, .* has 32 dimensions"):
        Encoder.from_pretrained(tiny_bert, truncate_dim=33)
    assert loaded_models() == before


def test_max_length_is_where_texts_are_cut(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    with Encoder.from_pretrained(tiny_bert, max_length=16) as encoder:
        cut = encoder.encode_documents(["cats purr " * 50], on_cut=lambda cut: None)
        kept = tokenizer("cats purr " * 50, truncation=True, max_length=16)["input_ids"]
        assert len(kept) == 16
        np.testing.assert_allclose(cut, encoder.encode_documents(["cats purr " * 7]), atol=1e-6)


def test_max_length_beyond_the_model_is_refused_and_gives_the_model_back(tiny_bert):
    before = loaded_models()
    with pytest.raises(ValueError, match=r"query_tokens is 129, but .* can place 128 tokens only"):
        Encoder.from_pretrained(tiny_bert, max_length=129)
    assert loaded_models() == before


def test_the_longest_text_a_model_can_place_is_encoded(tiny_bert, tiny_xlmr):
    for folder in (tiny_bert, tiny_xlmr):
        with Encoder.from_pretrained(folder) as encoder:
            assert encoder.recipe.document_tokens == 128
            vectors = encoder.encode_documents(["cats " * 500], on_cut=lambda cut: None)
            assert_unit(vectors, 1, 32)
            encoding = encoder.encode_listwise(["cats"], [["dogs " * 500] * 20])
            assert encoding.usage[0].tokens <= 128


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(minilm, dtype):
    with Encoder.from_pretrained("minilm", dtype=dtype) as half:
        vectors = half.encode_documents(TEXTS)
    assert_unit(vectors, len(TEXTS), 384)
    cosines = (vectors * minilm.encode_documents(TEXTS)).sum(1)
    assert cosines.min() > 0.995


def test_unknown_options_are_refused_by_name(tiny_bert):
    with pytest.raises(ValueError, match=r"dtype must be one of .* got 'int8'"):
        Encoder.from_pretrained(tiny_bert, dtype="int8")
    with pytest.raises(ValueError, match=r"pooling must be one of .* got 'max'"):
        Encoder.from_pretrained(tiny_bert, pooling="max")
    with pytest.raises(ValueError, match=r"task must be a Task record or one of"):
        Encoder.from_pretrained(tiny_bert, task="trec")
    with pytest.raises(ValueError, match="query_tokens"):
        Encoder.from_pretrained(tiny_bert, max_length=0)


# Saving


def test_saved_minilm_opens_in_sentence_transformers_with_the_same_vectors(minilm, tmp_path):
    texts = [*TEXTS, "a ferry to the island " * 100]
    minilm.save(tmp_path)
    stock = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    ours = minilm.encode_documents(texts, on_cut=lambda cut: None)
    np.testing.assert_allclose(ours, stock, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_saved_models_open_in_sentence_transformers_with_the_same_vectors(request, name, tmp_path):
    encoder = request.getfixturevalue(name)
    # Long enough to be cut: the end token has to survive there too.
    texts = [*TEXTS, "cats purr, dogs bark " * 400]
    encoder.save(tmp_path)
    stock = SentenceTransformer(str(tmp_path), device="cpu")
    documents = encoder.encode_documents(texts, on_cut=lambda cut: None)
    np.testing.assert_allclose(documents, stock.encode_document(texts), atol=1e-5)
    queries = stock.encode_query(QUERIES)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), queries, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_saved_models_open_again_as_they_were(request, name, tmp_path):
    encoder = request.getfixturevalue(name)
    recipe = encoder.recipe.model_copy(update={"query_weight": 0.25, "truncate_dim": 24})
    with encoder.with_recipe(recipe) as changed:
        changed.save(tmp_path)
        with Encoder.from_pretrained(tmp_path) as again:
            assert again.recipe == recipe
            assert again.dim == 24
            assert np.array_equal(again.encode_documents(TEXTS), changed.encode_documents(TEXTS))
            assert np.array_equal(again.encode_queries(QUERIES), changed.encode_queries(QUERIES))
            listwise = again.encode_listwise(QUERIES, CANDIDATES).embeddings
            assert np.array_equal(listwise, changed.encode_listwise(QUERIES, CANDIDATES).embeddings)
            with Encoder.from_pretrained(again.save(tmp_path / "copy")) as third:
                assert third.fingerprint == again.fingerprint


def test_what_the_caller_states_goes_before_the_saved_recipe(bert, tmp_path):
    bert.save(tmp_path)
    with Encoder.from_pretrained(tmp_path, pooling="cls") as encoder:
        assert encoder.recipe == bert.recipe.model_copy(update={"pooling": "cls"})


# Fingerprint


def fingerprint(encoder, **changes):
    with encoder.with_recipe(encoder.recipe.model_copy(update=changes)) as other:
        return other.fingerprint


def test_fingerprint_changes_with_what_changes_document_vectors(bert):
    prompts = bert.recipe.prompts.model_copy(update={"document": "passage: {document}"})
    changed = {
        fingerprint(bert),
        fingerprint(bert, prompts=prompts),
        fingerprint(bert, document_tokens=64),
        fingerprint(bert, truncate_dim=16),
        fingerprint(bert, pooling="cls"),
    }
    assert len(changed) == 5
    assert bert.fingerprint in changed


def test_fingerprint_does_not_change_with_the_query_side(bert):
    update = {"query": "query: {query}", "task": Task(query="Find it"), "listwise": None}
    prompts = bert.recipe.prompts.model_copy(update=update)
    assert fingerprint(bert, prompts=prompts) == bert.fingerprint
    assert fingerprint(bert, query_tokens=64) == bert.fingerprint
    assert fingerprint(bert, query_weight=0.75) == bert.fingerprint


def test_fingerprint_changes_with_the_weights(bert, tmp_path):
    bert.save(tmp_path)
    with Encoder.from_pretrained(tmp_path) as again:
        before = again.fingerprint
        again.loaded.transformer.embeddings.word_embeddings.weight.data[7, 3] += 0.5
        again.save(tmp_path / "trained")
    with Encoder.from_pretrained(tmp_path / "trained") as trained:
        assert trained.fingerprint != before


# One model in memory


@pytest.fixture
def folder(tiny_bert, tmp_path):
    """A model of the test's own, so that nothing else has it open."""
    return shutil.copytree(tiny_bert, tmp_path / "model")


def test_encoders_of_one_model_share_it_until_the_last_is_closed(folder):
    before = loaded_models()
    first, second = Encoder.from_pretrained(folder), Encoder.from_pretrained(str(folder))
    third = first.with_recipe(first.recipe.model_copy(update={"document_tokens": 16}))
    assert loaded_models() == before + 1
    assert first.loaded.transformer is second.loaded.transformer is third.loaded.transformer
    first.close()
    first.close()
    second.close()
    assert loaded_models() == before + 1
    assert_unit(third.encode_documents(["cats"]), 1, 32)
    third.close()
    assert loaded_models() == before


def test_a_device_under_another_name_is_the_same(folder):
    before = loaded_models()
    with Encoder.from_pretrained(folder), Encoder.from_pretrained(folder, device="cpu:0"):
        assert loaded_models() == before + 1


def test_every_precision_names_the_same_weights(folder):
    digests = set()
    for dtype in ("float32", "bfloat16", "float16"):
        with Encoder.from_pretrained(folder, dtype=dtype) as encoder:
            digests.add(encoder.digest)
    assert len(digests) == 1


def test_another_dtype_is_another_model(folder):
    before = loaded_models()
    with Encoder.from_pretrained(folder), Encoder.from_pretrained(folder, dtype="bfloat16"):
        assert loaded_models() == before + 2
    assert loaded_models() == before


async def test_use_after_close_says_so_and_opening_again_works(folder):
    with Encoder.from_pretrained(folder) as encoder:
        expected = encoder.encode_documents(TEXTS)
    calls = [
        lambda: encoder.encode_documents(TEXTS),
        lambda: encoder.encode_queries(TEXTS),
        lambda: encoder.encode_listwise(["cats"], [TEXTS]),
        lambda: encoder.save(folder / "copy"),
        lambda: encoder.with_recipe(encoder.recipe),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="was closed; open it again with Encoder"):
            call()
    with pytest.raises(RuntimeError, match="was closed; open it again with Encoder"):
        await encoder.aencode_documents(TEXTS)
    with Encoder.from_pretrained(folder) as again:
        assert np.array_equal(again.encode_documents(TEXTS), expected)


def test_a_recipe_that_does_not_fit_leaves_no_use_behind(folder):
    before = loaded_models()
    with Encoder.from_pretrained(folder) as encoder:
        with pytest.raises(ValueError, match="truncate_dim is 99"):
            encoder.with_recipe(encoder.recipe.model_copy(update={"truncate_dim": 99}))
        with pytest.raises(ValueError, match="can place 128 tokens only"):
            encoder.with_recipe(encoder.recipe.model_copy(update={"document_tokens": 999}))
    assert loaded_models() == before


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(folder):
    before = loaded_models()
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError):
        Encoder.from_pretrained(folder)
    assert loaded_models() == before


def test_closing_one_encoder_does_not_disturb_its_running_forward_pass(folder, monkeypatch):
    first, second = Encoder.from_pretrained(folder), Encoder.from_pretrained(folder)
    expected = second.encode_documents(TEXTS)
    inside, closed = threading.Event(), threading.Event()

    def wait_until_closed():
        inside.set()
        assert closed.wait(10)

    monkeypatch.setattr(first.loaded.worker, "check_cancelled", wait_until_closed)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.encode_documents, TEXTS)
        assert inside.wait(10)
        first.close()
        closed.set()
        assert np.array_equal(running.result(), expected)
    second.close()


# Many callers


def mixed_calls(encoder, count):
    """Calls of three kinds with texts of many lengths, as functions."""
    chance = random.Random(9)
    calls = []
    for index in range(count):
        texts = [
            " ".join(chance.choices([*TEXTS[:3], "dogs bark", "1387"], k=chance.randint(1, 30)))
            for _ in range(chance.randint(1, 5))
        ]
        lists = [texts[: chance.randint(0, 5)] for _ in texts]
        calls.append(
            [
                ("encode_queries", (texts,)),
                ("encode_documents", (texts,)),
                ("encode_listwise", (texts, lists)),
            ][index % 3]
        )
    return calls


def vectors_of(answer):
    return answer if isinstance(answer, np.ndarray) else answer.embeddings


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_eight_threads_get_exactly_the_answers_of_one(request, name):
    encoder = request.getfixturevalue(name)
    calls = mixed_calls(encoder, 32)
    expected = [vectors_of(getattr(encoder, kind)(*texts)) for kind, texts in calls]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda call: getattr(encoder, call[0])(*call[1]), calls))
    for answer, vectors in zip(answers, expected, strict=True):
        assert np.array_equal(vectors_of(answer), vectors)


async def test_sixty_four_tasks_get_the_same_answers_while_the_event_loop_ticks(bert):
    calls = mixed_calls(bert, 64)
    expected = [vectors_of(getattr(bert, kind)(*texts)) for kind, texts in calls]
    # The model's thread waits for the loop: a loop that waited for the model would stand still.
    held = threading.Event()
    first = asyncio.create_task(bert.run_async(partial(held.wait, 60)))
    long = asyncio.create_task(
        bert.aencode_documents(["cats purr " * 60] * 300, on_cut=lambda cut: None)
    )
    tasks = [asyncio.create_task(getattr(bert, f"a{kind}")(*texts)) for kind, texts in calls]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in (first, long, *tasks))
    held.set()
    assert await first
    ticks = 0
    while not long.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 20
    for answer, vectors in zip(await asyncio.gather(*tasks), expected, strict=True):
        assert np.array_equal(vectors_of(answer), vectors)


async def test_a_cancelled_task_leaves_the_queue(bert):
    hold, ran = threading.Event(), []
    blocker = asyncio.create_task(bert.run_async(hold.wait))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(bert.run_async(lambda: ran.append("waiting")))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hold.set()
    await blocker
    assert_unit(await bert.aencode_documents(["cats"]), 1, 32)
    assert ran == []


LONG_CALL = ["cats purr, dogs bark " * 30] * 1500
"""Many seconds of work for all-MiniLM-L6-v2."""


@pytest.fixture
def passes():
    """One item for each forward pass, however many batches a call needs."""
    done = []

    def count(module, *_):
        if isinstance(module, Backbone):
            done.append(1)

    hook = register_module_forward_hook(count)
    yield done
    hook.remove()


def threads_of(encoder):
    return encoder.loaded.worker.run(torch.get_num_threads)


async def test_a_cancelled_long_call_stops_between_two_batches(minilm, passes):
    long = asyncio.create_task(minilm.aencode_documents(LONG_CALL))
    while not passes:
        await asyncio.sleep(0.01)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    before = len(passes)
    await minilm.aencode_documents(["cats"])
    assert len(passes) <= before + 2 * threads_of(minilm) + 1  # what ran just then, and "cats"


def test_ctrl_c_stops_a_long_call_between_two_batches_and_the_encoder_stays_usable(
    minilm, interruptible, passes
):
    expected = minilm.encode_documents(["cats"])
    passes.clear()

    def interrupt():
        while not passes:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        minilm.encode_documents(LONG_CALL)
    before = len(passes)
    assert np.array_equal(minilm.encode_documents(["cats"]), expected)
    assert len(passes) <= before + 2 * threads_of(minilm) + 1  # what ran just then, and "cats"
    thread.join()


def test_the_bar_of_a_long_call_does_not_change_the_vectors(bert, capsys):
    shown = bert.encode_documents(TEXTS, progress=True)
    assert np.array_equal(shown, bert.encode_documents(TEXTS, progress=False))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("bfloat16", 'open it with dtype="float32"'),
        ("float32", "float32 is the widest dtype: the weights"),
    ],
)
def test_vectors_that_are_not_finite_are_an_error_with_advice_that_helps(folder, dtype, advice):
    with Encoder.from_pretrained(folder, dtype=dtype) as encoder:
        encoder.loaded.transformer.embeddings.LayerNorm.bias.data[0] = float("nan")
        with pytest.raises(
            FloatingPointError, match=f"{dtype} that are not finite or zero; {advice}"
        ):
            encoder.encode_documents(["cats"])


def test_a_vector_of_zeros_is_an_error(folder):
    with Encoder.from_pretrained(folder) as encoder:
        norm = encoder.loaded.transformer.encoder.layer[-1].output.LayerNorm
        norm.weight.data.zero_()
        norm.bias.data.zero_()
        with pytest.raises(FloatingPointError, match="not finite or zero"):
            encoder.encode_documents(["cats"])


def test_the_recipe_file_is_json_that_people_can_read(bert, tmp_path):
    bert.save(tmp_path)
    saved = json.loads((tmp_path / "e2rank.json").read_text(encoding="utf-8"))
    assert saved["system"] == "e2rank"
    assert saved["pooling"] == "mean"
    assert saved["prompts"]["listwise"] == {"kind": "span"}


def test_forgotten_queries_cost_a_forward_pass_again(bert, monkeypatch):
    passes, forward = [], Backbone.forward

    def counted(self, **batch):
        passes.append(len(batch["input_ids"]))
        return forward(self, **batch)

    monkeypatch.setattr(Backbone, "forward", counted)
    bert.forget_queries()
    first, cached = (bert.encode_queries(["who purrs?"]) for _ in range(2))
    assert passes == [1]
    bert.forget_queries()
    again = bert.encode_queries(["who purrs?"])
    assert passes == [1, 1]
    np.testing.assert_array_equal(first, cached)
    np.testing.assert_array_equal(first, again)
