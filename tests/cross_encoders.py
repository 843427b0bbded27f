"""A tiny cross-encoder with random weights."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.conftest import bert_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}


def write_bert_cross_encoder(folder, *, num_labels=1):
    """A folder with a BERT that reads 64 tokens of a pair."""
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, num_labels=num_labels, **SIZES
    )
    torch.manual_seed(5)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
