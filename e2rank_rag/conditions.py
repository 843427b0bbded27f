"""Conditions on meta as they are typed: `year>=2015`, `lang=en`."""

from __future__ import annotations

import json
from typing import Any

import typer


def parse_filters(conditions: list[str]) -> dict[str, Any]:
    """`key=value`, `key>=5`, ... as a filter; a key given twice is any-of (=) or a range.

    A value is read as JSON where it is some (5, true, "5"), else as text.
    """
    names = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt", "=": ""}
    parsed: dict[str, Any] = {}
    for condition in conditions:
        places = [(condition.find(sign), -len(sign), sign) for sign in names if sign in condition]
        if not places or min(places)[0] < 1:
            raise typer.BadParameter(f"--filter takes key=value or key>=5, got {condition!r}")
        sign = min(places)[2]
        key, value = (part.strip() for part in condition.split(sign, 1))
        if not key or key.endswith("!"):
            raise typer.BadParameter(f"--filter takes key=value or key>=5, got {condition!r}")
        read = _json_or_text(value)
        if isinstance(read, dict) or value.startswith(("=", "<", ">")):
            raise typer.BadParameter(
                f"--filter {condition}: write {key}=5, or {key}>=5 for a range; a text that begins "
                f"with {value[0]} is {key}={json.dumps(value)}"
            )
        known = parsed.get(key)
        if names[sign]:
            if known is not None and not isinstance(known, dict):
                raise typer.BadParameter(f"--filter {key}: = and {sign} cannot be combined")
            if known is not None and names[sign] in known:
                raise typer.BadParameter(f"--filter {key}: {sign} is given twice")
            parsed[key] = {**(known or {}), names[sign]: read}
        elif isinstance(known, dict):
            raise typer.BadParameter(f"--filter {key}: = cannot be combined with a range")
        else:
            parsed[key] = read if key not in parsed else [*_as_list(known), read]
    return parsed


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
