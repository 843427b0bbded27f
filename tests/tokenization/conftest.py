"""Tokenizers of the tiny models."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from tests.tokenizing import BERT, QWEN, text_tokenizer


@pytest.fixture(scope="module")
def released(tiny_qwen3):
    """The tokenizer as the released code opens it: it recognises special tokens."""
    return AutoTokenizer.from_pretrained(tiny_qwen3)


@pytest.fixture(scope="module")
def qwen(tiny_qwen3):
    return text_tokenizer(tiny_qwen3, QWEN)


@pytest.fixture(scope="module")
def bert(tiny_bert):
    return text_tokenizer(tiny_bert, BERT)


@pytest.fixture(scope="module")
def xlmr(tiny_xlmr):
    return text_tokenizer(tiny_xlmr, BERT)
