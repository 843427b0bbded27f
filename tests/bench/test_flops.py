"""Operations of a forward pass, by hand and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, Qwen3Config

from e2rank_rag.bench.flops import forward_flops

BERT = {
    "hidden_size": 8,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 30,
}
QWEN3 = {**BERT, "num_key_value_heads": 1, "head_dim": 6}


def test_a_bert_counts_six_matrices_and_two_products_of_attention():
    layer = 4 * 8 * 8 + 2 * 8 * 20  # query, key, value, output; up and down
    attention = 2 * 2 * 8 * (5 * 5 + 2 * 2)
    assert forward_flops(BertConfig(**BERT), [5, 2]) == 3 * (2 * layer * 7 + attention)


def test_a_qwen3_counts_shared_keys_a_gate_and_half_of_the_pairs():
    layer = 2 * 8 * 12 + 2 * 8 * 6 + 3 * 8 * 20  # query and output; key and value; gate, up, down
    attention = 2 * 2 * 12 * (1 + 2 + 3 + 4)
    assert forward_flops(Qwen3Config(**QWEN3), [4]) == 3 * (2 * layer * 4 + attention)


@pytest.mark.parametrize("config", [BertConfig(**BERT), Qwen3Config(**QWEN3)])
def test_torch_counts_the_same(config):
    options = {"add_pooling_layer": False} if isinstance(config, BertConfig) else {}
    model = AutoModel.from_config(config, attn_implementation="eager", **options).eval()
    for length in (1, 9):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, length, dtype=torch.long))
        # torch's products cover the pairs that a decoder's mask leaves out, too.
        masked = length * (length - 1) // 2 if isinstance(config, Qwen3Config) else 0
        assert counter.get_total_flops() == forward_flops(config, [length]) + 3 * 4 * 12 * masked


def test_no_text_needs_no_operation():
    assert forward_flops(BertConfig(**BERT), []) == 0
