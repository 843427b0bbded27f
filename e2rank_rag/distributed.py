"""Several processes, one batch: rows of all processes in one tensor, with exact gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def processes() -> int:
    """How many train together; 1 where torch.distributed was not started."""
    return dist.get_world_size() if _started() else 1


def process() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if _started() else 0


def share(items: Sequence[T]) -> Sequence[T]:
    """Those of this process, so that each has its own and all together have all."""
    return items[process() :: processes()]


def from_first(value: T) -> T:
    """What the first process gives, in all of them; every process must call it. Not for tensors."""
    if processes() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gather_objects(part: T) -> list[T]:
    """What all processes hold, in their order; every process must call it. Not for tensors."""
    if processes() == 1:
        return [part]
    parts: list[Any] = [None] * processes()
    dist.all_gather_object(parts, part)
    return parts


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order: [n, ...] in each -> [processes * n, ...].

    Every process must call it with the same shape and dtype. The input itself where there is one
    process only.

    The gradient of a row sums what the losses of all processes say of it, so a process holds the
    gradient of the sum of the losses, as far as it goes through its own rows. Averaged over W
    processes, as data parallel training does, that is the gradient of (1/W) * that sum: where each
    loss is the mean over its own queries, the mean over all. No factor of W is needed anywhere.
    """
    if processes() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # A copy, because autograd may hand the same tensor to others.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(processes())[process()]


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()
