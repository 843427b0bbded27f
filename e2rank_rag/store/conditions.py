"""Conditions on one payload field, with the same answer from a server and from local mode.

Each function takes the field's path in the payload and, for errors, its name in the filter. Numbers
compare as in JSON: 10 equals 10.0, and true is not a number. On a field that is a list, one
matching element is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import isfinite, ulp
from typing import Any, Literal, TypeGuard

from qdrant_client import models

from e2rank_rag.store.layout import INT64_LIMIT, check_text

NOTHING = models.HasIdCondition(has_id=[])
"""A condition that no document meets."""

EVERYTHING = models.Filter(must_not=[NOTHING])
"""A condition that every document meets."""

# In a range, a server compares integers as doubles, which are exact below this number.
EXACT = 2**53
# Into how many parts each level of a long list of numbers is divided.
PARTS = 8

# Keys that Qdrant's path parser takes without quotes.
BARE_SEGMENT = re.compile(r"[\w-]+", re.ASCII)


def path_of(segments: Iterable[str], name: str) -> str:
    """The path to a value under these nested keys."""
    check_text(name, f"filter {name!r}")
    parts = []
    for segment in segments:
        if not segment:
            raise ValueError(f"filter {name!r} has an empty part: name a field")
        if '"' in segment or "\\" in segment:
            raise ValueError(f'filter {name!r} holds a " or a \\, which no path in Qdrant can say')
        parts.append(segment if BARE_SEGMENT.fullmatch(segment) else f'"{segment}"')
    return ".".join(parts)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite JSON number, and not a bool."""
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def equals(path: str, name: str, value: str | bool | int | float) -> models.Condition:
    """Equal to a str, a bool or a finite number; 10 also matches a stored 10.0."""
    if isinstance(value, str):
        check_text(value, f"filter {name!r} is {value!r}, which")
    if isinstance(value, str | bool):
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))
    if isinstance(value, float) and not value.is_integer():
        return _double(path, value)
    integer = int(value)
    if abs(integer) < EXACT:
        return _double(path, integer)
    if not -INT64_LIMIT <= integer < INT64_LIMIT:
        if isinstance(value, float):
            return _double(path, value)  # stored integers are smaller
        raise ValueError(f"filter {name!r} is {value}: Qdrant holds integers of 64 bits only")
    same = models.FieldCondition(key=path, match=models.MatchValue(value=integer))
    if float(integer) != integer:
        return same
    other = models.FieldCondition(key=path, match=models.MatchAny(any=_rounded_to(integer)))
    return models.Filter(
        should=[same, models.Filter(must=[_double(path, integer)], must_not=[other])]
    )


def equals_one(
    path: str, name: str, values: Iterable[str | bool | int | float]
) -> list[models.Condition]:
    """Conditions of which a field that equals one of the values meets one; empty for no values."""
    values = list(values)
    texts = [value for value in values if isinstance(value, str)]
    for text in texts:
        check_text(text, f"filter {name!r} is {text!r}, which")
    small = {value for value in values if is_number(value) and abs(value) < EXACT}
    others = [v for v in values if not isinstance(v, str) and not (is_number(v) and v in small)]
    met = [equals(path, name, value) for value in others]
    if texts:
        met.append(models.FieldCondition(key=path, match=models.MatchAny(any=texts)))
    return [*met, _one_of_doubles(path, sorted(small))] if small else met


def within(path: str, name: str, bounds: Mapping[str, int | float]) -> models.FieldCondition:
    """A number within finite bounds: keys "gt", "gte", "lt", "lte".

    ValueError for a bound above which doubles cannot represent every integer.
    """
    for bound in bounds.values():
        # Stored integers are smaller than the floats above 64 bits.
        if abs(bound) >= EXACT and (isinstance(bound, int) or abs(bound) <= INT64_LIMIT):
            raise ValueError(
                f"filter {name!r} has the bound {bound}: Qdrant compares numbers as doubles, "
                f"which do not tell integers of 2**53 (9007199254740992) and above apart. Store "
                f"a coarser unit (milliseconds in place of nanoseconds), or pass a "
                f"qdrant_client.models.Filter to compare doubles"
            )
    return models.FieldCondition(
        key=path, range=models.Range(**{sign: float(bound) for sign, bound in bounds.items()})
    )


def dated_within(path: str, bounds: Mapping[str, datetime]) -> models.FieldCondition:
    """An ISO date within bounds: keys as in `within`. Dates without a time zone count as UTC."""
    return models.FieldCondition(key=path, range=models.DatetimeRange(**bounds))


def has_no_value(path: str) -> models.IsEmptyCondition:
    """Missing, null, or an empty list: Qdrant does not tell the three apart."""
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))


def is_no_list(path: str) -> models.IsEmptyCondition:
    """Not a list with elements: combined with it, a condition is about the field's own value."""
    return has_no_value(f"{path}[]")


def negated(condition: models.Condition) -> models.Filter:
    """The negation of a condition."""
    return models.Filter(must_not=[condition])


def all_of(conditions: Sequence[models.Condition]) -> models.Condition:
    """The conjunction, with nested `all_of` flattened, because servers take some 40 levels."""
    return _joined(conditions, "must") if conditions else EVERYTHING


def any_of(conditions: Sequence[models.Condition]) -> models.Condition:
    """The disjunction; `NOTHING` for no conditions, which Qdrant would read as no filter."""
    return _joined(conditions, "should") if conditions else NOTHING


def _joined(
    conditions: Sequence[models.Condition], how: Literal["must", "should"]
) -> models.Condition:
    parts: list[models.Condition] = []
    for condition in conditions:
        alike = isinstance(condition, models.Filter) and condition.model_fields_set == {how}
        parts += getattr(condition, how) if alike else [condition]
    if len(parts) == 1:
        return parts[0]
    return models.Filter(must=parts) if how == "must" else models.Filter(should=parts)


def _double(path: str, value: int | float) -> models.FieldCondition:
    # Qdrant cannot match floats; a closed range of one value does the same.
    number = float(value)
    return models.FieldCondition(key=path, range=models.Range(gte=number, lte=number))


def _one_of_doubles(path: str, ordered: Sequence[int | float]) -> models.Condition:
    """One of several numbers, divided into ranges, so that a point is compared with few of them."""
    if len(ordered) == 1:
        return _double(path, ordered[0])
    size = -(-len(ordered) // PARTS)
    parts = [
        _one_of_doubles(path, ordered[start : start + size])
        for start in range(0, len(ordered), size)
    ]
    ends = models.Range(gte=float(ordered[0]), lte=float(ordered[-1]))
    return models.Filter(must=[models.FieldCondition(key=path, range=ends)], should=parts)


def _rounded_to(integer: int) -> list[int]:
    """The other integers whose nearest double is this integer."""
    reach = int(ulp(float(integer))) // 2
    around = range(max(integer - reach, -INT64_LIMIT), integer + reach + 1)
    return [n for n in around if float(n) == integer and n != integer]
