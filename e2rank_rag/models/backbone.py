"""Tensors in, tensors out: a transformer and the one way in which vectors are read off it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pool(hidden: Tensor, slots: Tensor) -> Tensor:
    """The float32 mean of the hidden states of each slot: [B, L, D], int [B, L] -> [B, S, D].

    S is the highest slot number. Every row must fill every slot: an empty one has no mean, and the
    check would cost a device synchronisation per batch, so whoever fills the slots answers for it
    (`TextTokenizer` does).
    """
    count = int(slots.max())
    members = (
        slots[:, None, :] == torch.arange(1, count + 1, device=slots.device)[:, None]
    )  # [B, S, L]
    sums = members.to(torch.float32) @ hidden.to(torch.float32)
    return sums / members.sum(-1, keepdim=True)


class Backbone(nn.Module):
    """A Hugging Face encoder or decoder without its head, giving unit vectors.

    truncate_dim: how many leading dimensions are kept, before scaling to unit length.
    """

    def __init__(self, transformer: nn.Module, *, truncate_dim: int | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.truncate_dim = truncate_dim

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pool_slots: Tensor) -> Tensor:
        """int [B, L] three times -> float32 [B, S, D], unit length, one vector per slot."""
        hidden = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        pooled = pool(hidden, pool_slots)[..., : self.truncate_dim]
        return F.normalize(pooled, dim=-1)
