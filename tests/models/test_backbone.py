"""Pooling by hand, and unit vectors off a transformer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from e2rank_rag.models.backbone import Backbone, pool

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
