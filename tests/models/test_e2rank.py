"""Pooling by hand, and vectors of a model that serves or is in training."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from e2rank_rag.models.e2rank import Backbone, RecentVectors, TextModel, blend, pool
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import load_transformer
from e2rank_rag.tokenization import TextTokenizer, plain_tokenizer

# One row of four tokens, two dimensions.
HIDDEN = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, -2.0], [100.0, 100.0]]])


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([1, 1, 1, 0], [[3.0, 0.0]]),
        ([1, 0, 0, 0], [[1.0, 0.0]]),
        ([0, 0, 1, 0], [[5.0, -2.0]]),
        ([1, 2, 2, 0], [[1.0, 0.0], [4.0, 0.0]]),
        ([3, 1, 2, 0], [[3.0, 2.0], [5.0, -2.0], [1.0, 0.0]]),
    ],
)
def test_pooling_is_the_mean_of_each_slot(slots, expected):
    assert pool(HIDDEN, torch.tensor([slots])).tolist() == [expected]


def test_rows_may_fill_their_slots_differently():
    hidden = torch.cat([HIDDEN, 2 * HIDDEN])
    slots = torch.tensor([[1, 1, 2, 0], [0, 2, 2, 1]])
    expected = [[[2.0, 1.0], [5.0, -2.0]], [[200.0, 200.0], [8.0, 0.0]]]
    assert pool(hidden, slots).tolist() == expected


def test_the_mean_is_taken_in_float32():
    # 257 ones in bfloat16: a sum in bfloat16 stops at 256.
    hidden = torch.ones(1, 257, 1, dtype=torch.bfloat16)
    pooled = pool(hidden, torch.ones(1, 257, dtype=torch.long))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 1.0


def test_pooling_has_a_gradient_for_the_pooled_tokens_only():
    hidden = HIDDEN.clone().requires_grad_()
    pool(hidden, torch.tensor([[1, 1, 0, 0]])).sum().backward()
    assert hidden.grad.tolist() == [[[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]]


class Fixed(nn.Module):
    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=HIDDEN.expand(len(input_ids), -1, -1))


def test_vectors_have_unit_length_after_truncation():
    ids = torch.zeros(1, 4, dtype=torch.long)
    slots = torch.tensor([[0, 1, 2, 0]])
    whole = Backbone(Fixed())(ids, ids, slots)
    torch.testing.assert_close(whole[0, 0], torch.tensor([3.0, 2.0]) / 13**0.5)
    torch.testing.assert_close(whole[0, 1], torch.tensor([5.0, -2.0]) / 29**0.5)
    short = Backbone(Fixed(), truncate_dim=1)(ids, ids, slots)
    assert short.tolist() == [[[1.0], [1.0]]]


# Recent queries


def test_the_longest_not_asked_for_is_forgotten_first():
    recent = RecentVectors(2)
    for key in ("a", "b"):
        recent.put(key, np.full(3, ord(key), dtype=np.float32))
    assert recent.get("a") is not None
    recent.put("c", np.zeros(3, dtype=np.float32))
    assert recent.get("b") is None
    np.testing.assert_array_equal(recent.get("a"), [97.0] * 3)


@pytest.fixture
def passes(tiny_bert, tmp_path):
    """An encoder, and the numbers of texts of each forward pass so far."""
    folder = shutil.copytree(tiny_bert, tmp_path / "model")  # other tests ask the same model
    with Encoder.from_pretrained(folder) as encoder:
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


# A model that is in training


DOCUMENTS = ["cats purr", "dogs bark, dogs dig", "a ferry crosses the strait", "salt"]
QUERIES = ["which animals purr?", "ferry times"]
LISTS = [DOCUMENTS[:3], DOCUMENTS[1:]]


@pytest.fixture(params=["bert", "qwen3"])
def encoder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def training(encoder):
    """A copy of the encoder's transformer in training mode, and a tokenizer of its own."""
    tokenizer = load_tokenizer(encoder.weights_folder)
    texts = TextTokenizer(tokenizer, plain_tokenizer(tokenizer), encoder.recipe)
    return load_transformer(encoder.weights_folder, dtype=torch.float32).train(), texts


def test_a_model_in_training_gives_the_vectors_that_serve(training, encoder):
    model = TextModel(*training)
    assert model.dim == encoder.dim
    np.testing.assert_allclose(
        model.encode_documents(DOCUMENTS), encoder.encode_documents(DOCUMENTS), atol=1e-5
    )
    np.testing.assert_allclose(
        model.encode_queries(QUERIES), encoder.encode_queries(QUERIES), atol=1e-5
    )
    for options in ({}, {"depth": 2, "query_weight": 0.3}, {"depth": 0, "query_weight": 0.0}):
        ours = model.encode_listwise(QUERIES, LISTS, **options)
        theirs = encoder.encode_listwise(QUERIES, LISTS, **options)
        np.testing.assert_allclose(ours.embeddings, theirs.embeddings, atol=1e-5)
        assert ours.usage == theirs.usage


def test_a_model_goes_on_training_after_it_has_encoded(training):
    transformer, texts = training
    before = TextModel(transformer, texts).encode_queries(QUERIES)
    assert all(module.training for module in transformer.modules())
    batch = texts.collate(texts.queries(QUERIES))
    Backbone(transformer)(**batch).sum().backward()
    for parameter in transformer.parameters():
        parameter.data += 0.1
    assert np.abs(TextModel(transformer, texts).encode_queries(QUERIES) - before).max() > 1e-3


def test_with_a_listwise_module_of_its_own_queries_and_documents_stay(training, encoder):
    transformer, texts = training
    for parameter in transformer.parameters():
        parameter.data += 0.1
    model = TextModel(encoder.loaded.transformer, texts, listwise=transformer)
    documents, queries = model.encode_documents(DOCUMENTS), model.encode_queries(QUERIES)
    np.testing.assert_allclose(documents, encoder.encode_documents(DOCUMENTS), atol=1e-6)
    np.testing.assert_allclose(queries, encoder.encode_queries(QUERIES), atol=1e-6)
    moved = model.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    plain = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    assert np.abs(moved - plain).max() > 1e-3


def test_a_query_vector_that_the_caller_has_is_not_encoded_again(encoder):
    queries = encoder.encode_queries(QUERIES)
    expected = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.5).embeddings
    given = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.5, query_vectors=queries)
    np.testing.assert_array_equal(given.embeddings, expected)
    turned = encoder.encode_listwise(QUERIES, LISTS, query_weight=1.0, query_vectors=-queries)
    np.testing.assert_allclose(turned.embeddings, -queries, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(1, 32\).*2 queries.*\(2, 32\)"):
        encoder.encode_listwise(QUERIES, LISTS, query_vectors=queries[:1])


def test_the_blend_is_the_weighted_mean_of_unit_length():
    queries, listwise = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert blend(queries, listwise, 0.0) is listwise
    torch.testing.assert_close(blend(queries, listwise, 1.0), queries)
    torch.testing.assert_close(
        blend(queries, listwise, 0.75), torch.tensor([[0.75, 0.25]]) / 0.625**0.5
    )
