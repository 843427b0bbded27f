"""A request to Qdrant, and what its answer must hold.

The functions raise ValueError for any other answer; the connection makes it a StoreError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from qdrant_client import models

Points = list[Any]
R = TypeVar("R")


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
        raise ValueError(f"{answer!r} where it is True once that is done")


def written(answer: Any) -> None:
    """Raise ValueError unless the update was completed, or acknowledged."""
    # Acknowledged is what a cluster may say: it is on record, and will be seen a moment later.
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
    """The points; ValueError if one is there twice."""
    if len({str(point.id) for point in points}) < len(points):
        raise ValueError("one point is there twice")
    return points


def asked_for(points: Points, *, ids: Sequence[Any]) -> Points:
    """The points; ValueError for one whose id is not in `ids`, and for one that is there twice."""
    if not {str(point.id) for point in points} <= set(map(str, ids)):
        raise ValueError("a point is there that was not asked for")
    return each_once(points)


def others(points: Points, *, ids: Sequence[Any]) -> Points:
    """As `asked_for`, with named vectors only."""
    if any(point.vector and not isinstance(point.vector, dict) for point in points):
        raise ValueError("a vector is there that was not asked for")
    return asked_for(points, ids=ids)
