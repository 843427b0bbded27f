"""A request to Qdrant, and the checks of its answer.

The functions raise ValueError for an invalid answer; the connection makes it a StoreError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from qdrant_client import models

Points = list[Any]
R = TypeVar("R")
T = TypeVar("T")

# A server takes 32 MB, but slow links time out at much less.
BYTES_PER_REQUEST = 4_000_000


@dataclass(frozen=True, slots=True)
class Request(Generic[R]):
    """A method that QdrantClient and AsyncQdrantClient both have, with its arguments.

    parse: turns the answer into a result, or raises ValueError.
    """

    method: str
    arguments: Mapping[str, Any]
    parse: Callable[[Any], R]


def done(answer: Any) -> None:
    """Raise ValueError unless the answer is True."""
    if answer is not True:
        raise ValueError(f"{answer!r}, expected True")


def written(answer: Any) -> None:
    """Raise ValueError unless the update was completed, or acknowledged."""
    # A cluster may answer "acknowledged": the update is logged, and visible a moment later.
    if answer.status not in (models.UpdateStatus.COMPLETED, models.UpdateStatus.ACKNOWLEDGED):
        raise ValueError(f"the operation is {answer.status.value}, not completed")


def all_written(answer: Any, *, count: int) -> None:
    """Raise ValueError unless there are `count` results, all written."""
    if len(answer) != count:
        raise ValueError(f"{len(answer)} results of {count} operations")
    for result in answer:
        written(result)


def counted(answer: Any) -> int:
    """The count; ValueError if it is below 0."""
    if answer.count < 0:
        raise ValueError(f"a count of {answer.count}")
    return int(answer.count)


def each_once(points: Points) -> Points:
    """The points; ValueError for a repeated point."""
    if len({str(point.id) for point in points}) < len(points):
        raise ValueError("one point is there twice")
    return points


def asked_for(points: Points, *, ids: Sequence[Any]) -> Points:
    """The points; ValueError for a point whose id is not in `ids`, and for a repeated point."""
    if not {str(point.id) for point in points} <= set(map(str, ids)):
        raise ValueError("the answer has a point that was not requested")
    return each_once(points)


def others(points: Points, *, ids: Sequence[Any]) -> Points:
    """Like `asked_for`, for points with named vectors only."""
    if any(point.vector and not isinstance(point.vector, dict) for point in points):
        raise ValueError("the answer has a vector that was not requested")
    return asked_for(points, ids=ids)


def batches(
    items: Sequence[T], at_most: int, sizes: Sequence[int] | None = None
) -> Iterator[list[T]]:
    """Batches with limits on the number of items and, if sizes are given, on their bytes."""
    batch: list[T] = []
    total = 0
    for item, size in zip(items, sizes or [0] * len(items), strict=True):
        if batch and (total + size > BYTES_PER_REQUEST or len(batch) == at_most):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
