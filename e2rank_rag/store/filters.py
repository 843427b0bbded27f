"""Plain conditions on meta fields, as Qdrant's filter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any

from qdrant_client import models

RANGE_OPERATORS = ("gt", "gte", "lt", "lte")
ACCEPTED = (
    "a condition is a value (str, int, float, bool), a non-empty list of values (any of), or a "
    "range {'gt' | 'gte' | 'lt' | 'lte': number or ISO date string}; "
    "for anything else pass a qdrant_client.models.Filter"
)
# What Qdrant's path parser takes without quotes; brackets reach into arrays.
BARE_SEGMENT = re.compile(r"[\w-]+(\[\d*\])*")


def to_qdrant_filter(
    filter: Mapping[str, Any] | models.Filter | None, metadata_key: str
) -> models.Filter | None:
    """Qdrant's form of `{"year": 2024, "tag": ["a", "b"], "score": {"gte": 0.5}}`.

    All conditions must hold. Keys name meta fields, a dot reaches a nested one. On a field that is
    a list, one matching element is enough. Dates without a time zone count as UTC. A native filter
    passes through, its keys as they are; None and {} mean no filter. ValueError otherwise.
    """
    if filter is None or isinstance(filter, models.Filter):
        return filter
    if not isinstance(filter, Mapping):
        raise ValueError(f"filter is {filter!r}, not a dict: {ACCEPTED}")
    if not filter:
        return None
    return models.Filter(
        must=[_condition(_path(key, metadata_key), key, value) for key, value in filter.items()]
    )


def _path(key: Any, metadata_key: str) -> str:
    if not isinstance(key, str) or not all(key.split(".")):
        raise ValueError(f"filter key {key!r} is not the name of a meta field, nor a dotted path")
    if '"' in key:
        raise ValueError(f'filter key {key!r} holds a ", which a path in Qdrant cannot say')
    return ".".join([metadata_key, *map(_quoted, key.split("."))])


def _quoted(segment: str) -> str:
    return segment if BARE_SEGMENT.fullmatch(segment) else f'"{segment}"'


def _condition(path: str, key: str, value: Any) -> models.Condition:
    if isinstance(value, Mapping):
        return _range(path, key, value)
    if isinstance(value, list | tuple):
        return _any_of(path, key, value)
    return _equal(path, key, value)


def _equal(path: str, key: str, value: Any) -> models.FieldCondition:
    if isinstance(value, str | int):  # bool is an int
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))
    if isinstance(value, float) and isfinite(value):
        # Qdrant matches no floats: a closed range of one value says the same.
        return models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))
    raise _refused(key, value)


def _any_of(path: str, key: str, values: Sequence[Any]) -> models.Condition:
    if not values:
        raise ValueError(
            f"filter {key!r} is any of an empty list, which no document can be: leave the key out "
            f"to take all documents"
        )
    if all(isinstance(value, str) for value in values) or all(type(v) is int for v in values):
        return models.FieldCondition(key=path, match=models.MatchAny(any=list(values)))
    return models.Filter(should=[_equal(path, key, value) for value in values])


def _range(path: str, key: str, bounds: Mapping[str, Any]) -> models.FieldCondition:
    unknown = [operator for operator in bounds if operator not in RANGE_OPERATORS]
    if unknown or not bounds:
        raise ValueError(
            f"filter {key!r} is {dict(bounds)!r}: unknown operators {unknown}; {ACCEPTED}"
        )
    if all(_is_number(bound) for bound in bounds.values()):
        return models.FieldCondition(key=path, range=models.Range(**bounds))
    if all(isinstance(bound, str) for bound in bounds.values()):
        dates = {operator: _date(key, bound) for operator, bound in bounds.items()}
        return models.FieldCondition(key=path, range=models.DatetimeRange(**dates))
    raise _refused(key, dict(bounds))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _date(key: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"filter {key!r}: {text!r} is no ISO date; {ACCEPTED}") from error


def _refused(key: str, value: Any) -> ValueError:
    return ValueError(f"filter {key!r} cannot be {value!r} ({type(value).__name__}); {ACCEPTED}")
