"""One batch over several processes: gathered rows with exact gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def processes() -> int:
    """How many processes train together; 1 if torch.distributed was not started."""
    return dist.get_world_size() if _started() else 1


def process() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _started() else 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items; every item belongs to exactly one process."""
    return items[process() :: processes()]


def from_first(value: T) -> T:
    """The first process's value. Every process must call it. Not for tensors."""
    if processes() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gather_objects(part: T) -> list[T]:
    """All processes' values, in process order; every process must call it. Not for tensors."""
    if processes() == 1:
        return [part]
    parts: list[Any] = [None] * processes()
    dist.all_gather_object(parts, part)
    return parts


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in process order: [n, ...] in each -> [processes * n, ...].

    Every process must call it with the same shape and dtype. With one process it returns the input.

    Backward sums the gradients of a row over the losses of all processes, so each process holds the
    gradient of the summed losses through its own rows. Data parallel training averages over the W
    processes, which gives the gradient of (1/W) * the sum. If each loss is the mean over its own
    queries, that is the mean over all queries, and no factor of W is needed.
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
        # A copy, because autograd may pass the same tensor to other functions.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(processes())[process()]


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()
