"""Vectors against independent computations, and an encoder's behaviour under many callers."""

from __future__ import annotations

import asyncio
import json
import logging
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
from transformers import AutoModel, AutoTokenizer, BertModel

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import BATCH_TOKENS, loaded_models
from e2rank_rag.models.shipped import minilm_folder
from e2rank_rag.prompts import E2RANK, TASKS, Task
from e2rank_rag.tokenization import batches_by_length

END = "<|endoftext|>"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

# Different lengths, so that batches are padded.
TEXTS = [
    "cats",
    "A ferry crosses the strait between the two islands four times a day.",
    "図書館は九時に開きます。",
    "Bread rises because yeast turns sugar into carbon dioxide; salt slows it down. " * 4,
    "17",
    "The oldest bridge over the river was built in 1387\nand carries trams 🙂",
]
QUERIES = ["how is bread made", "cats", "where does the ferry go? 🙂", "Katze schläft"]
CANDIDATES = [TEXTS, TEXTS[:1], TEXTS[::-1], []]


def assert_unit(vectors, count, dim):
    assert vectors.dtype == np.float32
    assert vectors.shape == (count, dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


# The released way, written anew


@pytest.fixture(scope="module")
def released(tiny_qwen3):
    """Texts, specials included, to vectors: left padding, last position, unit length."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3, padding_side="left")
    model = AutoModel.from_pretrained(tiny_qwen3).eval()

    def encode(texts):
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            last = model(**batch).last_hidden_state[:, -1]
        return torch.nn.functional.normalize(last, dim=-1).numpy()

    encode.tokenizer = tokenizer
    return encode


def test_query_vectors_equal_the_released_way(qwen3, released):
    expected = released([f"Instruct: {INSTRUCTION}\nQuery:{query}{END}" for query in QUERIES])
    np.testing.assert_allclose(qwen3.encode_queries(QUERIES), expected, atol=1e-5)


def test_document_vectors_equal_the_released_way(qwen3, released):
    expected = released([text + END for text in TEXTS])
    np.testing.assert_allclose(qwen3.encode_documents(TEXTS), expected, atol=1e-5)


def test_listwise_vectors_equal_the_released_way(qwen3, released):
    prompts = []
    for query, documents in zip(QUERIES, CANDIDATES, strict=True):
        numbered = "\n".join(f"[{i}] {text}" for i, text in enumerate(documents, start=1))
        content = (
            "Given a web search query and some relevant documents, rerank the documents that "
            f"answer the query:\nDocuments:\n{numbered}\nSearch Query: {query}"
        )
        prompts.append(
            released.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        )
    encoding = qwen3.encode_listwise(QUERIES, CANDIDATES)
    np.testing.assert_allclose(encoding.embeddings, released(prompts), atol=1e-5)
    assert [used.documents for used in encoding.usage] == [6, 1, 6, 0]


def test_verbatim_prompts_keep_their_special_tokens(qwen3, released):
    texts = [f"cats{END}", f"<|im_start|>user\n[1] a ferry{END}<|im_end|>\n"]
    np.testing.assert_allclose(qwen3.encode_verbatim(texts), released(texts), atol=1e-5)


def test_minilm_vectors_equal_mean_pooling_by_hand(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()
    np.testing.assert_allclose(minilm.encode_documents(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(minilm.encode_queries(TEXTS), expected, atol=1e-5)


def test_span_prompt_pools_only_the_query_tokens(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    ids = tokenizer("bread rises")["input_ids"]
    span = len(ids)
    for document in ("yeast and sugar", "salt"):
        ids += tokenizer(document)["input_ids"][1:]
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0, :span]
    expected = torch.nn.functional.normalize(hidden.mean(0), dim=-1).numpy()
    documents = ["yeast and sugar", "salt"]
    encoding = minilm.encode_listwise(["bread rises"], [documents], query_weight=0.0)
    np.testing.assert_allclose(encoding.embeddings[0], expected, atol=1e-5)


# Shape, order, batching


@pytest.mark.parametrize("name", ["qwen3", "bert", "minilm"])
def test_vectors_are_float32_of_unit_length(request, name):
    encoder = request.getfixturevalue(name)
    assert_unit(encoder.encode_documents([*TEXTS, "", " "]), len(TEXTS) + 2, encoder.dim)
    assert_unit(encoder.encode_queries(QUERIES), 4, encoder.dim)
    assert_unit(encoder.encode_listwise(QUERIES, CANDIDATES).embeddings, 4, encoder.dim)


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_text_alone_equals_the_same_text_in_any_batch(request, name):
    encoder = request.getfixturevalue(name)
    chance = random.Random(5)
    texts = ["cats purr " * chance.randint(1, 200) + str(index) for index in range(60)]
    alone = np.concatenate([encoder.encode_documents([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_documents(texts), alone, atol=1e-5)
    order = chance.sample(range(60), 60)
    shuffled = encoder.encode_documents([texts[index] for index in order])
    np.testing.assert_allclose(shuffled, alone[order], atol=1e-5)


def test_real_weights_give_a_text_the_same_vector_alone_and_in_a_batch(minilm):
    texts = [("a ferry to the island " * n) + "cats" for n in (0, 1, 2, 5, 9, 20, 40, 3)]
    alone = np.concatenate([minilm.encode_documents([text]) for text in texts])
    np.testing.assert_allclose(minilm.encode_documents(texts), alone, atol=1e-5)


def test_listwise_prompts_alone_equal_the_same_in_a_batch(qwen3, bert):
    for encoder in (qwen3, bert):
        together = encoder.encode_listwise(QUERIES, CANDIDATES)
        for index, (query, documents) in enumerate(zip(QUERIES, CANDIDATES, strict=True)):
            alone = encoder.encode_listwise([query], [documents])
            np.testing.assert_allclose(together.embeddings[index], alone.embeddings[0], atol=1e-5)
            assert together.usage[index] == alone.usage[0]


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_nothing_in_gives_no_rows_out(request, name):
    encoder = request.getfixturevalue(name)
    assert encoder.encode_documents([]).shape == (0, encoder.dim)
    assert encoder.encode_queries([]).shape == (0, encoder.dim)
    for weight in (0.0, 0.5):
        encoding = encoder.encode_listwise([], [], query_weight=weight)
        assert encoding.embeddings.shape == (0, encoder.dim)
        assert encoding.embeddings.dtype == np.float32
        assert encoding.usage == ()


def test_batches_hold_every_index_once_within_the_budget_longest_first():
    chance = random.Random(1)
    for _ in range(200):
        lengths = [chance.randint(1, 300) for _ in range(chance.randint(0, 40))]
        batches = list(batches_by_length(lengths, 256))
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        flat = [lengths[index] for batch in batches for index in batch]
        assert flat == sorted(lengths, reverse=True)
        for batch in batches:
            padded = len(batch) * max(lengths[index] for index in batch)
            assert padded <= 256 or len(batch) == 1


def test_batches_by_hand():
    # 4 + 4 = 8 with padding; a third would make 12. 9 is longer than the budget and stands alone.
    assert list(batches_by_length([3, 9, 4, 2, 2], 8)) == [[1], [2, 0], [3, 4]]


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


def test_a_task_changes_queries_and_not_documents(tiny_qwen3, qwen3, released):
    with Encoder.from_pretrained(
        tiny_qwen3, pooling="last", prompts="e2rank", task="scifact"
    ) as encoder:
        expected = released([f"Instruct: {TASKS['scifact'].query}\nQuery:cats{END}"])
        np.testing.assert_allclose(encoder.encode_queries(["cats"]), expected, atol=1e-5)
        assert np.array_equal(encoder.encode_documents(["cats"]), qwen3.encode_documents(["cats"]))


# Cut texts


def test_over_long_texts_are_reported_once_per_call(bert, caplog):
    texts = ["cats purr " * 200, "cats", "dogs bark " * 200]
    with caplog.at_level(logging.WARNING, logger="e2rank_rag"):
        bert.encode_documents(texts)
        bert.encode_queries(texts[:2])
        bert.encode_documents(["cats"])
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 documents were longer than 128 tokens and were cut there",
        "1 of 2 queries were longer than 128 tokens and were cut there",
    ]


def test_on_cut_is_told_in_place_of_the_log(bert, caplog):
    told = []
    bert.encode_documents(["cats purr " * 200, "cats"], on_cut=told.append)
    bert.encode_documents(["cats"], on_cut=told.append)
    assert told == [(1, 2, 128)]
    assert (told[0].texts, told[0].of, told[0].limit) == (1, 2, 128)
    assert not caplog.records


# Listwise


def test_depth_zero_is_the_plain_query_for_a_span_prompt(bert, minilm):
    for encoder in (bert, minilm):
        encoding = encoder.encode_listwise(QUERIES, CANDIDATES, depth=0)
        np.testing.assert_allclose(encoding.embeddings, encoder.encode_queries(QUERIES), atol=1e-6)
        assert [used.documents for used in encoding.usage] == [0] * 4


def test_depth_takes_the_first_candidates(qwen3):
    deep = qwen3.encode_listwise(["cats"], [TEXTS], depth=2)
    short = qwen3.encode_listwise(["cats"], [TEXTS[:2]])
    np.testing.assert_allclose(deep.embeddings, short.embeddings, atol=1e-6)
    assert deep.usage == short.usage


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_query_weight_blends_both_views(bert, weight):
    plain = bert.encode_queries(QUERIES)
    listwise = bert.encode_listwise(QUERIES, CANDIDATES, query_weight=0.0).embeddings
    mixed = weight * plain + (1 - weight) * listwise
    expected = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    encoding = bert.encode_listwise(QUERIES, CANDIDATES, query_weight=weight)
    np.testing.assert_allclose(encoding.embeddings, expected, atol=1e-5)
    assert encoding.embeddings.dtype == np.float32


def test_query_weight_of_the_recipe_is_the_default(bert):
    recipe = bert.recipe.model_copy(update={"query_weight": 0.75})
    expected = bert.encode_listwise(QUERIES, CANDIDATES, query_weight=0.75).embeddings
    with bert.with_recipe(recipe) as other:
        vectors = other.encode_listwise(QUERIES, CANDIDATES).embeddings
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_bad_listwise_calls_name_the_figures(bert):
    with pytest.raises(ValueError, match="2 queries came with 1 candidate lists"):
        bert.encode_listwise(["a", "b"], [["c"]])
    with pytest.raises(ValueError, match="depth must be 0 or more, got -1"):
        bert.encode_listwise(["cats"], [["dogs"]], depth=-1)
    with pytest.raises(ValueError, match=r"query_weight must be between 0 and 1, got 1\.5"):
        bert.encode_listwise(["cats"], [["dogs"]], query_weight=1.5)
    with pytest.raises(TypeError, match=r"got one string; write \['dogs'\]"):
        bert.encode_listwise(["cats"], ["dogs"])
    with pytest.raises(TypeError, match="candidate 1 is a NoneType, not a string"):
        bert.encode_listwise(["cats"], [["dogs", None]])


# Bad texts


def test_texts_that_are_none_are_refused(bert):
    with pytest.raises(TypeError, match=r"expected a list of texts, got one string; write \['cats"):
        bert.encode_queries("cats")
    with pytest.raises(TypeError, match="document 1 is a int, not a string"):
        bert.encode_documents(["cats", 7])
    with pytest.raises(ValueError, match="document 2 has a lone surrogate at character 3") as error:
        bert.encode_documents(["cats", "図書館", "dog\ud800"])
    assert 'encode("utf-8", "replace")' in str(error.value)
    with pytest.raises(ValueError, match="query 0 has a lone surrogate"):
        bert.encode_listwise(["\udfff"], [["dogs"]])
    with pytest.raises(ValueError, match="query 1 is empty"):
        bert.encode_queries(["cats", " "])


def test_an_iterator_of_texts_is_read_once_and_wholly(bert):
    vectors = bert.encode_documents(text for text in TEXTS)
    assert np.array_equal(vectors, bert.encode_documents(TEXTS))


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
    calls = mixed_calls(encoder, 96)
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
    """One item for each forward pass of a BERT, however many batches a call needs."""
    done = []

    def count(module, *_):
        if isinstance(module, BertModel):
            done.append(1)

    hook = register_module_forward_hook(count)
    yield done
    hook.remove()


async def test_a_cancelled_long_call_stops_between_two_batches(minilm, passes):
    long = asyncio.create_task(minilm.aencode_documents(LONG_CALL))
    while not passes:
        await asyncio.sleep(0.01)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    before = len(passes)
    await minilm.aencode_documents(["cats"])
    assert len(passes) <= before + 2  # the batch of that moment, and "cats"


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
    assert len(passes) <= before + 2  # the batch of that moment, and "cats"
    thread.join()


def test_the_bar_of_a_long_call_does_not_change_the_vectors(bert, capsys):
    shown = bert.encode_documents(TEXTS, progress=True)
    assert np.array_equal(shown, bert.encode_documents(TEXTS, progress=False))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("bfloat16", 'open it with dtype="float32"'),
        ("float32", "float32 is the widest there is: the weights are damaged"),
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


def test_a_text_longer_than_a_batch_is_encoded_alone(tiny_qwen3, released):
    text = "cats " * 2000
    with Encoder.from_pretrained(
        tiny_qwen3, pooling="last", prompts=E2RANK, max_length=2048
    ) as encoder:
        vectors = encoder.encode_documents([text, "cats", text])
    assert BATCH_TOKENS["cpu"] < 2 * 2001
    np.testing.assert_allclose(vectors, released([text + END, "cats" + END, text + END]), atol=1e-5)


def test_the_recipe_file_is_json_that_people_can_read(bert, tmp_path):
    bert.save(tmp_path)
    saved = json.loads((tmp_path / "e2rank.json").read_text(encoding="utf-8"))
    assert saved["system"] == "e2rank"
    assert saved["pooling"] == "mean"
    assert saved["prompts"]["listwise"] == {"kind": "span"}
