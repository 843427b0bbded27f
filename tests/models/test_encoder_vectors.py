"""An encoder's vectors against independent computations."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import BATCH_TOKENS
from e2rank_rag.models.shipped import minilm_folder
from e2rank_rag.prompts import E2RANK, TASKS
from tests.encoders import CANDIDATES, QUERIES, TEXTS, assert_unit

END = "<|endoftext|>"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


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


def test_with_the_whole_weight_on_the_query_no_prompt_is_read(bert, monkeypatch):
    monkeypatch.setattr(bert.tokenizer, "listwise", None)
    queries = bert.encode_queries(QUERIES)
    encoding = bert.encode_listwise(QUERIES, CANDIDATES, query_weight=1.0)
    np.testing.assert_array_equal(encoding.embeddings, queries)
    assert encoding.usage == ()
    given = bert.encode_listwise(QUERIES, CANDIDATES, query_weight=1.0, query_vectors=-queries)
    np.testing.assert_array_equal(given.embeddings, -queries)


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


def test_a_task_changes_queries_and_not_documents(tiny_qwen3, qwen3, released):
    with Encoder.from_pretrained(
        tiny_qwen3, pooling="last", prompts="e2rank", task="scifact"
    ) as encoder:
        expected = released([f"Instruct: {TASKS['scifact'].query}\nQuery:cats{END}"])
        np.testing.assert_allclose(encoder.encode_queries(["cats"]), expected, atol=1e-5)
        assert np.array_equal(encoder.encode_documents(["cats"]), qwen3.encode_documents(["cats"]))


def test_a_text_longer_than_a_batch_is_encoded_alone(tiny_qwen3, released):
    text = "cats " * 2000
    with Encoder.from_pretrained(
        tiny_qwen3, pooling="last", prompts=E2RANK, max_length=2048
    ) as encoder:
        vectors = encoder.encode_documents([text, "cats", text])
    assert BATCH_TOKENS["cpu"] < 2 * 2001
    np.testing.assert_allclose(vectors, released([text + END, "cats" + END, text + END]), atol=1e-5)
