"""Batches that do not fit into memory: chunk by chunk, with the gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from e2rank_rag.models.backbone import Backbone


def embed(
    model: nn.Module, chunks: Sequence[Mapping[str, Tensor]], *, truncate_dim: int | None = None
) -> Tensor:
    """Unit vectors of the texts of all chunks, float32 [n, D].

    Of several chunks the vectors alone are kept: the backward pass repeats the forward pass of one
    chunk after the other, with the same dropout, once it has the gradient of the whole batch at the
    vectors. This is GradCache (Gao et al. 2021, arXiv 2101.06983), whose two passes are what
    activation checkpointing does with a chunk for a segment.
    """
    vectors = []
    for chunk in chunks:
        # DDP counts forward passes; the repetition in a backward pass is none of its business.
        modules = chain([model], repeat(_without_ddp(model)))

        def forward(*tokens: Tensor, modules: Any = modules) -> Tensor:
            slots: Tensor = Backbone(next(modules), truncate_dim=truncate_dim)(*tokens)
            return slots[:, 0]

        # By position: checkpoint finds the devices whose random state it keeps in these only.
        tokens = (chunk["input_ids"], chunk["attention_mask"], chunk["pool_slots"])
        if len(chunks) == 1:
            vectors.append(forward(*tokens))
        else:
            vectors.append(checkpoint(forward, *tokens, use_reentrant=False))
    return torch.cat(vectors)


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
