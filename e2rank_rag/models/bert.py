"""BERT's forward pass for pooling, with the modules and weights of transformers' `BertModel`.

It computes what pooling reads, and gives the same states as the original:

- The last layer computes the pooled tokens alone, which are few of a listwise prompt's.
- Texts of one length need no mask for padding, and nothing reads BERT's own pooler.
- In bfloat16 on a CPU, attention is two matrix products and a softmax. PyTorch's fused kernel is
  made for long texts and large heads, and is slower here.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

LONGEST_PRODUCT = 512
"""Tokens of a text up to which attention is computed by two products, for memory's sake."""


def fits(transformer: nn.Module) -> TypeGuard[BertModel]:
    """Whether `states` gives the states of this model: a BERT in use, without hooks of its own."""
    if type(transformer) is not BertModel or torch.is_grad_enabled() or transformer.training:
        return False
    if transformer._forward_hooks or transformer._forward_pre_hooks:
        return False
    config = transformer.config
    causal = config.is_decoder or getattr(config, "is_causal", False)
    return not causal and config._attn_implementation == "sdpa"


def states(
    bert: BertModel, input_ids: Tensor, attention_mask: Tensor, pool_slots: Tensor
) -> tuple[Tensor, Tensor]:
    """The last hidden states [B, K, D] and the slots of their tokens [B, K].

    input_ids, attention_mask, pool_slots: int [B, L]; slot 0 is not pooled. K is L, or the largest
    number of pooled tokens of a text if that is less than half of L.
    """
    hidden: Tensor = bert.embeddings(input_ids=input_ids)
    mask = None if bool(attention_mask.all()) else attention_mask[:, None, None, :].bool()
    *layers, last = bert.encoder.layer
    for layer in layers:
        hidden = _layer(layer, hidden, hidden, mask)
    pooled = pool_slots > 0
    most = int(pooled.sum(1).max())
    if 2 * most > input_ids.shape[1]:
        return _layer(last, hidden, hidden, mask), pool_slots
    # Rows with fewer pooled tokens are filled with tokens of slot 0.
    places = pooled.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    asking = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    return _layer(last, asking, hidden, mask), pool_slots.gather(1, places)


def _layer(layer: Any, asking: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The next states of `asking` [B, K, D], which attend to `hidden` [B, L, D]."""
    attention = layer.attention.self
    shape = (hidden.shape[0], -1, attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        linear(states).view(shape).transpose(1, 2)
        for linear, states in (
            (attention.query, asking),
            (attention.key, hidden),
            (attention.value, hidden),
        )
    )
    context = _attended(query, key, value, mask).transpose(1, 2).flatten(2)
    attended = layer.attention.output(context, asking)
    found: Tensor = layer.output(layer.intermediate(attended), attended)
    return found


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[B, heads, K, d] for queries of this shape, and keys and values [B, heads, L, d]."""
    products = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if not products or key.shape[2] > LONGEST_PRODUCT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf"))
    return torch.matmul(scores.softmax(-1), value)
