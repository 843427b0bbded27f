"""Batches that do not fit into memory: chunk by chunk, with the gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from e2rank_rag.models.e2rank import Backbone


def embed(
    model: nn.Module, chunks: Sequence[Mapping[str, Tensor]], *, truncate_dim: int | None = None
) -> Tensor:
    """Unit vectors of the texts of all chunks, float32 [n, D]; see `in_chunks`."""

    def vectors(module: nn.Module, tokens: Mapping[str, Tensor]) -> Tensor:
        slots: Tensor = Backbone(module, truncate_dim=truncate_dim)(**tokens)
        return slots[:, 0]

    return in_chunks(model, chunks, vectors)


def in_chunks(
    model: nn.Module,
    chunks: Sequence[Mapping[str, Tensor]],
    read: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
) -> Tensor:
    """What `read` makes of the model and each chunk, [n, ...], one after the other.

    Of several chunks the results alone are kept: the backward pass repeats the forward pass of one
    chunk after the other, with the same dropout, once it has the gradient of the whole batch at the
    results. This is GradCache (Gao et al. 2021, arXiv 2101.06983), whose two passes are what
    activation checkpointing does with a chunk for a segment.
    """
    parts = []
    for chunk in chunks:
        # DDP counts forward passes; the repetition in a backward pass is none of its business.
        modules = chain([model], repeat(_without_ddp(model)))
        names = tuple(chunk)

        def forward(*tensors: Tensor, modules: Any = modules, names: Any = names) -> Tensor:
            return read(next(modules), dict(zip(names, tensors, strict=True)))

        # By position: checkpoint finds the devices whose random state it keeps in these only.
        if len(chunks) == 1:
            parts.append(forward(*chunk.values()))
        else:
            parts.append(checkpoint(forward, *chunk.values(), use_reentrant=False))
    return torch.cat(parts)


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
