"""How many floating-point operations a forward pass needs: matrix products, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def forward_flops(config: Any, lengths: Sequence[int]) -> int:
    """The operations of one forward pass over texts of these lengths in tokens.

    config: of a transformers model: a BERT, or a decoder with grouped keys and values and a gated
        feed-forward, such as a Qwen3.

    A product of [n, k] and [k, m] counts 2nkm. Counted are the linear layers, and attention: each
    token with all tokens of its text, in a decoder with those up to itself. Embedding look-ups,
    norms, activations and a head count nothing.
    """
    tokens = sum(lengths)
    # Two products per pair of tokens that attend: the weights, and the mean of the values.
    width = _heads_width(config)
    attention = 2 * 2 * width * sum(_attending(config, length) for length in lengths)
    layer = 2 * _linear_weights(config) * tokens + attention
    return int(config.num_hidden_layers) * layer


def _linear_weights(config: Any) -> int:
    """The numbers in the weight matrices of one layer."""
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    queries = _heads_width(config)
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    keys = queries // int(config.num_attention_heads) * int(shared)
    # A gated feed-forward has a third matrix.
    matrices = 3 if _is_decoder(config) else 2
    return 2 * hidden * queries + 2 * hidden * keys + matrices * hidden * inner


def _heads_width(config: Any) -> int:
    heads = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    return heads * int(size)


def _attending(config: Any, length: int) -> int:
    """Pairs of tokens that attention compares in a text of this length."""
    return length * (length + 1) // 2 if _is_decoder(config) else length * length


def _is_decoder(config: Any) -> bool:
    return getattr(config, "num_key_value_heads", None) is not None
