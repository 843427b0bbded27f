"""Reads settings from YAML files, and `key=value` arguments that replace them.

YAML is read by its 1.2 rules, where `no` and `on` are words and `2e-5` is a number. The type of the
setting then decides what a word or a number means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from e2rank_rag.lines import read_text


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2. Repeated keys, and keys that are lists or
    mappings, are errors."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given: set[str] = set()
        for key, _ in node.value:
            wrong = "a key is not a word" if not isinstance(key, yaml.ScalarNode) else ""
            if not wrong and key.value in given:
                wrong = f"{key.value!r} is given twice"
            if wrong:
                raise yaml.constructor.ConstructorError(None, None, wrong, key.start_mark)
            given.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


for _tag, _pattern, _first in (  # _first: the characters that it may begin with
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    # Without a plus sign or leading zeros, which a name that looks like a number would lose.
    ("int", r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )

_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file; ValueError that names the file if it holds none."""
    try:
        settings = yaml.load(read_text(path), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings, but {type(settings).__name__}")
    return settings


def override(settings: dict[str, Any], text: str) -> None:
    """Change the settings by `key=value` or `block.key=value`."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ValueError(f"{text!r} is not a setting; write key=value or block.key=value")
    *blocks, key = name.split(".")
    for block in blocks:
        if settings.get(block) is None:
            settings[block] = {}
        settings = settings[block]
        if not isinstance(settings, dict):
            raise ValueError(f"{text!r}: {block} is not a block of settings")
    try:
        settings[key] = yaml.load(value, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{text!r} is not YAML: {error}") from error


def as_written(value: Any, annotation: Any) -> Any:
    """A value as it was meant: for a text or a path, a number is its digits.

    ValueError for true or false as a number, because Python would read them as 1 and 0.
    """
    kinds = _kinds(annotation)
    if isinstance(value, bool):
        if kinds & {int, float} and bool not in kinds:
            raise ValueError(f"a number is needed, not {str(value).lower()}")
        return value
    if isinstance(value, int) and kinds & {str, Path} and not kinds & {int, float, bool}:
        return str(value)
    if isinstance(value, Mapping):
        fields = {
            name: field.annotation
            for kind in kinds
            if isinstance(kind, type) and issubclass(kind, BaseModel)
            for name, field in kind.model_fields.items()
        }
        return {name: _within(name, item, fields.get(name, Any)) for name, item in value.items()}
    return value


def _within(name: str, value: Any, annotation: Any) -> Any:
    try:
        return as_written(value, annotation)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def switched(value: Any) -> Any:
    """The value with yes, no, on and off as booleans, for settings of any type."""
    if isinstance(value, Mapping):
        return {key: switched(item) for key, item in value.items()}
    if isinstance(value, list):
        return [switched(item) for item in value]
    return _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def told(error: ValidationError, *, within: Sequence[str] = ()) -> str:
    """The errors, by the names of the settings; within: names of the blocks around them."""
    return "; ".join(
        f"{'.'.join(map(str, (*within, *each['loc']))) or 'settings'}: {each['msg']}{_got(each)}"
        for each in error.errors()
    )


def _got(error: Any) -> str:
    value = error["input"]
    return f", got {value!r}" if isinstance(value, str | int | float) else ""


def _kinds(annotation: Any) -> set[Any]:
    """The types that a union allows."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    parts = get_args(annotation)
    if not parts:
        return {annotation}
    if isinstance(get_origin(annotation), type) and get_origin(annotation) in (list, tuple, dict):
        return {get_origin(annotation)}
    return set().union(*map(_kinds, parts))
