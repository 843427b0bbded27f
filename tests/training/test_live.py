"""The model in training gives the vectors that the saved one will give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import load_transformer
from e2rank_rag.tokenization import TextTokenizer, pad_id, plain_tokenizer
from e2rank_rag.training.live import LiveEncoder

DOCUMENTS = ["cats purr", "dogs bark, dogs dig", "a ferry crosses the strait", "salt"]
QUERIES = ["which animals purr?", "ferry times"]
LISTS = [DOCUMENTS[:3], DOCUMENTS[1:]]


@pytest.fixture(params=["bert", "qwen3"])
def encoder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def live(encoder):
    model = load_transformer(encoder.weights_folder, dtype=torch.float32).train()
    tokenizer = load_tokenizer(encoder.weights_folder)
    texts = TextTokenizer(tokenizer, plain_tokenizer(tokenizer), encoder.recipe)
    return LiveEncoder(model, texts, encoder.recipe, pad_id=pad_id(tokenizer), base=None)


def test_vectors_are_those_of_the_encoder(live, encoder):
    assert live.dim == encoder.dim
    np.testing.assert_allclose(
        live.encode_documents(DOCUMENTS), encoder.encode_documents(DOCUMENTS), atol=1e-5
    )
    np.testing.assert_allclose(
        live.encode_queries(QUERIES), encoder.encode_queries(QUERIES), atol=1e-5
    )
    for options in ({}, {"depth": 2, "query_weight": 0.3}, {"depth": 0, "query_weight": 0.0}):
        ours = live.encode_listwise(QUERIES, LISTS, **options)
        theirs = encoder.encode_listwise(QUERIES, LISTS, **options)
        np.testing.assert_allclose(ours.embeddings, theirs.embeddings, atol=1e-5)
        assert ours.usage == theirs.usage


def test_the_model_goes_on_training_afterwards(live):
    live.encode_queries(QUERIES)
    assert live.model.training


def test_in_adapter_mode_the_base_encodes_queries_and_documents(live, encoder):
    frozen = LiveEncoder(live.model, live.tokenizer, live.recipe, pad_id=live.pad_id, base=encoder)
    for parameter in live.model.parameters():
        parameter.data += 0.1
    np.testing.assert_array_equal(
        frozen.encode_documents(DOCUMENTS), encoder.encode_documents(DOCUMENTS)
    )
    np.testing.assert_array_equal(frozen.encode_queries(QUERIES), encoder.encode_queries(QUERIES))
    moved = frozen.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    plain = encoder.encode_listwise(QUERIES, LISTS, query_weight=0.0).embeddings
    assert np.abs(moved - plain).max() > 1e-3
