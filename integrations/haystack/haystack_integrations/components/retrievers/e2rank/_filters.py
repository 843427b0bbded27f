"""Haystack's filters as Qdrant's, with the answers of Haystack's InMemoryDocumentStore.

A Qdrant condition on a list holds when one element meets it, and its negation also holds for values
of another type. So each comparison here requires a field that is no list, and NOT moves down to the
comparisons: NOT(x > 3) is "x <= 3 or no x", which leaves out values that cannot be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from haystack import Document
from haystack.document_stores.types import FilterPolicy
from haystack.document_stores.types.filter_policy import apply_filter_policy
from haystack.errors import FilterError
from qdrant_client import models

from e2rank_rag.store import Layout, conditions

Filters = dict[str, Any] | models.Filter | None

COMPARISON = frozenset({"field", "operator", "value"})
LOGIC = frozenset({"operator", "conditions"})
OPPOSITE = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}
BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
COMPARISONS = ("==", "!=", *OPPOSITE, "in", "not in")
DOCUMENT_FIELDS = frozenset(field.name for field in fields(Document))
# Haystack compares such strings as dates in an equality, and partial dates as text.
FULL_DATE = re.compile(r"\d{4}-\d\d-\d\d([Tt ].*)?", re.ASCII)
DEEPEST = 100


def chosen_filters(policy: FilterPolicy, at_init: Filters, at_run: Filters) -> Filters:
    """The filters of one call of `run`.

    Merged filters must both hold. Where one is a single comparison, the condition given to `run`
    replaces that of the construction on the same field, as elsewhere in Haystack. ValueError for
    native filters that would have to be merged.
    """
    native = isinstance(at_init, models.Filter) or isinstance(at_run, models.Filter)
    if policy == FilterPolicy.MERGE and native:
        raise ValueError(
            "Native Qdrant filters cannot be used with filter_policy set to MERGE: set it to "
            "REPLACE, or use Haystack filters"
        )
    if policy == FilterPolicy.MERGE and at_init and at_run:
        both = (at_init, at_run)
        for given in both:
            qdrant_filter(given, Layout())  # Haystack would silently drop a malformed one
        # Haystack's own rule drops the first where OR or NOT joins the conditions of one.
        if any(given.get("operator", "AND") in ("OR", "NOT") for given in both):
            return {"operator": "AND", "conditions": list(both)}
    chosen: Filters = apply_filter_policy(policy, at_init, at_run)  # type: ignore[arg-type]
    return chosen


def from_yaml(filters: Any) -> Any:
    """Filters as YAML holds them; a dict with the keys of a native filter becomes one again."""
    if isinstance(filters, Mapping) and filters and set(filters) <= set(models.Filter.model_fields):
        return models.Filter.model_validate(filters)
    return filters


def qdrant_filter(filters: Filters, layout: Layout) -> models.Filter | None:
    """Haystack's filters as Qdrant's. A native filter passes through; None and {} are no filter.

    `meta.<field>` is a meta field, and so is a bare name that Document does not have; `id` and
    `content` are where the layout has them. As in Haystack's InMemoryDocumentStore, a missing field
    is None, True is 1, strings that are dates compare as dates, and a list is not its elements.
    Unlike there, dates without a time zone count as UTC, and an empty list is None.

    FilterError for a malformed filter, and for a comparison that Qdrant cannot express.
    """
    if filters is None or isinstance(filters, models.Filter):
        return filters
    if isinstance(filters, Mapping) and not filters:
        return None
    try:
        condition = _converted(filters, layout, negated=False, depth=1)
    except ValueError as error:
        raise FilterError(str(error)) from error
    return condition if isinstance(condition, models.Filter) else models.Filter(must=[condition])


def _converted(item: Any, layout: Layout, *, negated: bool, depth: int) -> models.Condition:
    if not isinstance(item, Mapping) or set(item) not in (COMPARISON, LOGIC):
        raise FilterError(
            f"{item!r} is no Haystack filter: give a dict with 'field', 'operator' and 'value', or "
            f"with 'operator' and 'conditions'"
        )
    if depth > DEEPEST:
        raise FilterError(f"the filter is nested more than {DEEPEST} deep: make it flatter")
    if "conditions" in item:
        return _logic(item, layout, negated=negated, depth=depth)
    return _comparison(item, layout, negated=negated)


def _logic(
    item: Mapping[str, Any], layout: Layout, *, negated: bool, depth: int
) -> models.Condition:
    operator, parts = item["operator"], item["conditions"]
    if operator not in ("AND", "OR", "NOT"):
        raise FilterError(f"unknown logical operator {operator!r}: use 'AND', 'OR' or 'NOT'")
    if not isinstance(parts, list | tuple):
        raise FilterError(f"the conditions of {operator} are {parts!r}, not a list")
    inner = negated != (operator == "NOT")
    converted = [_converted(part, layout, negated=inner, depth=depth + 1) for part in parts]
    # De Morgan: the parts are negated already, so a negated AND is an OR of them.
    if (operator == "OR") == inner:
        return conditions.all_of(converted)
    return conditions.any_of(converted)


def _comparison(item: Mapping[str, Any], layout: Layout, *, negated: bool) -> models.Condition:
    field, operator, value = item["field"], item["operator"], item["value"]
    if operator not in COMPARISONS:
        raise FilterError(f"unknown operator {operator!r} on {field!r}: use one of {COMPARISONS}")
    path = _path(field, layout)
    if operator in OPPOSITE:
        return _ordered(path, field, operator, value, negated=negated)
    if operator in ("in", "not in"):
        if not isinstance(value, list):
            raise FilterError(f"the value of {operator!r} on {field!r} is {value!r}, not a list")
        condition = _one_of(path, field, value)
    else:
        condition = _one_of(path, field, [value])
    return conditions.negated(condition) if negated != (operator in ("!=", "not in")) else condition


def _path(field: Any, layout: Layout) -> str:
    """Where the payload holds a field."""
    if not isinstance(field, str):
        raise FilterError(f"the field {field!r} is {type(field).__name__}, not str")
    root, *rest = field.split(".")
    if root == "meta" and rest:
        return conditions.path_of([layout.metadata_key, *rest], field)
    if field == "content":
        return conditions.path_of([layout.content_key], field)
    if field == "id":
        if layout.id_key is None:
            raise FilterError("'id' cannot be filtered by: in this layout it is the point's own id")
        return conditions.path_of([layout.id_key], field)
    if rest or field in DOCUMENT_FIELDS:
        raise FilterError(
            f"{field!r} is no field that Qdrant can filter by: use 'id', 'content' or "
            f"'meta.<name>', with further dots for nested fields"
        )
    return conditions.path_of([layout.metadata_key, field], field)


def _one_of(path: str, field: str, values: list[Any]) -> models.Condition:
    missing = [conditions.has_no_value(path)] if any(value is None for value in values) else []
    given = [value for value in values if value is not None]
    equal = conditions.equals_one(path, field, _alike(field, given))
    equal += [
        conditions.dated_within(path, {"gte": date, "lte": date})
        for date in map(_full_date, given)
        if date is not None
    ]
    if not equal:
        return missing[0] if missing else conditions.NOTHING
    plain = models.Filter(must=[conditions.is_no_list(path)], should=equal)
    return conditions.any_of([*missing, plain]) if missing else plain


def _alike(field: str, values: list[Any]) -> Iterator[str | bool | int | float]:
    """The values, and those that Python holds equal to them: True is 1. No datetime is stored."""
    for value in values:
        if isinstance(value, bool) or conditions.is_number(value):
            yield value
            if value in (0, 1):
                yield int(value) if isinstance(value, bool) else bool(value)
        elif isinstance(value, str):
            yield value
        elif not isinstance(value, datetime):
            raise FilterError(
                f"{field!r} cannot be compared with {value!r} ({type(value).__name__}) by Qdrant: "
                f"give a str, a bool, a finite number, None or a datetime"
            )


def _ordered(
    path: str, field: str, operator: str, value: Any, *, negated: bool
) -> models.Condition:
    if value is None:  # nothing is more or less than None
        return conditions.EVERYTHING if negated else conditions.NOTHING
    sign = OPPOSITE[operator] if negated else operator
    number = int(value) if isinstance(value, bool) else value
    if conditions.is_number(number):
        met: list[models.Condition] = [conditions.within(path, field, {BOUNDS[sign]: number})]
        met += [conditions.equals(path, field, b) for b in (False, True) if _holds(b, sign, number)]
    else:
        met = [conditions.dated_within(path, {BOUNDS[sign]: _date(field, value)})]
    plain = models.Filter(must=[conditions.is_no_list(path)], should=met)
    return models.Filter(should=[plain, conditions.has_no_value(path)]) if negated else plain


def _holds(value: bool, sign: str, bound: int | float) -> bool:
    if value == bound:
        return sign in (">=", "<=")
    return (value > bound) == (sign in (">", ">="))


def _date(field: str, value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise FilterError(
            f"{field!r} cannot be compared with {value!r} by order: give a number, a datetime "
            f"or an ISO date"
        ) from error


def _full_date(value: Any) -> datetime | None:
    """The value as a datetime; None where it is no full date."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not FULL_DATE.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None
