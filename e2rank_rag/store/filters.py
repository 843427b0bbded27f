"""Plain conditions on meta fields, as Qdrant's filter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from qdrant_client import models

from e2rank_rag.store import conditions

RANGE_OPERATORS = ("gt", "gte", "lt", "lte")
ACCEPTED = (
    "a condition is a value (str, int, float, bool), a non-empty list of values (any of), or a "
    "range {'gt' | 'gte' | 'lt' | 'lte': number or ISO date string}; "
    "for anything else pass a qdrant_client.models.Filter"
)
# Brackets reach into arrays.
INTO_ARRAY = re.compile(r"(.+?)((?:\[\d*\])+)", re.DOTALL)


def to_qdrant_filter(
    filter: Mapping[str, Any] | models.Filter | None, metadata_key: str
) -> models.Filter | None:
    """Qdrant's form of `{"year": 2024, "tag": ["a", "b"], "score": {"gte": 0.5}}`.

    All conditions must hold. Keys name meta fields; a dot names a nested one. On a field that is a
    list, one matching element is enough. 10 and 10.0 are equal, True and 1 are not. Dates without a
    time zone count as UTC. A native filter is returned unchanged; None and {} mean no filter.
    ValueError for anything else, Haystack's filters included.
    """
    if filter is None or isinstance(filter, models.Filter):
        return filter
    if not isinstance(filter, Mapping):
        raise ValueError(f"filter is {filter!r}, not a dict: {ACCEPTED}")
    if not filter:
        return None
    if "operator" in filter and ("field" in filter or "conditions" in filter):
        raise ValueError(
            f"filter {dict(filter)!r} is in Haystack's form, which E2RankRetriever of Haystack "
            f"takes; here keys name meta fields, as in {{'year': {{'gte': 2015}}}}. {ACCEPTED}"
        )
    return models.Filter(
        must=[_condition(_path(key, metadata_key), key, value) for key, value in filter.items()]
    )


def _path(key: Any, metadata_key: str) -> str:
    if not isinstance(key, str) or not all(key.split(".")):
        raise ValueError(f"filter key {key!r} is not the name of a meta field, nor a dotted path")
    path = conditions.path_of([metadata_key], metadata_key)
    for segment in key.split("."):
        into = INTO_ARRAY.fullmatch(segment)
        name, brackets = into.groups() if into else (segment, "")
        path += f".{conditions.path_of([name], key)}{brackets}"
    return path


def _condition(path: str, key: str, value: Any) -> models.Condition:
    if isinstance(value, Mapping):
        return _range(path, key, value)
    if isinstance(value, list | tuple):
        return _any_of(path, key, value)
    return conditions.equals(path, key, _checked(key, value))


def _any_of(path: str, key: str, values: Sequence[Any]) -> models.Condition:
    if not values:
        raise ValueError(
            f"filter {key!r} is any of an empty list, which no document can be: leave the key out "
            f"to take all documents"
        )
    met = conditions.equals_one(path, key, [_checked(key, value) for value in values])
    return conditions.any_of(met)


def _checked(key: str, value: Any) -> Any:
    if isinstance(value, str | bool) or conditions.is_number(value):
        return value
    raise _refused(key, value)


def _range(path: str, key: str, bounds: Mapping[str, Any]) -> models.FieldCondition:
    unknown = [operator for operator in bounds if operator not in RANGE_OPERATORS]
    if unknown or not bounds:
        raise ValueError(
            f"filter {key!r} is {dict(bounds)!r}: unknown operators {unknown}; {ACCEPTED}"
        )
    if all(conditions.is_number(bound) for bound in bounds.values()):
        return conditions.within(path, key, bounds)
    if all(isinstance(bound, str) for bound in bounds.values()):
        dates = {operator: _date(key, bound) for operator, bound in bounds.items()}
        return conditions.dated_within(path, dates)
    raise _refused(key, dict(bounds))


def _date(key: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"filter {key!r}: {text!r} is no ISO date; {ACCEPTED}") from error


def _refused(key: str, value: Any) -> ValueError:
    return ValueError(f"filter {key!r} cannot be {value!r} ({type(value).__name__}); {ACCEPTED}")
