"""Batches that do not fit into memory, in chunks, with the gradient of the whole batch."""

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
    """The results of `read(model, chunk)` for all chunks, [n, ...], one after the other.

    With several chunks only the results are kept. The backward pass, which knows the gradient of
    the whole batch at the results, repeats the forward pass of each chunk with the same dropout.
    This is GradCache (Gao et al. 2021, arXiv 2101.06983); its two passes are activation
    checkpointing with a chunk as the segment.
    """
    parts = []
    for chunk in chunks:
        # DDP counts forward passes, and must not count the repetition in the backward pass.
        modules = chain([model], repeat(_without_ddp(model)))
        names = tuple(chunk)

        def forward(*tensors: Tensor, modules: Any = modules, names: Any = names) -> Tensor:
            return read(next(modules), dict(zip(names, tensors, strict=True)))

        # By position: checkpoint keeps the random state of the devices of these tensors only.
        if len(chunks) == 1:
            parts.append(forward(*chunk.values()))
        else:
            parts.append(checkpoint(forward, *chunk.values(), use_reentrant=False))
    return torch.cat(parts)


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
