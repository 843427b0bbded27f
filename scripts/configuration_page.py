"""Writes docs/configuration.md from the classes of `e2rank_rag.training.config`.

python scripts/configuration_page.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from e2rank_rag.training.config import STAGES, StageConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

HEAD = """\
# Configuration

A stage of training is one YAML file. [Training](training.md) shows whole files, and
`e2rank_rag/training/configs/` holds some. Every stage has the settings of the first table and those
of its own table. `feedback` is described in [How it works](how-it-works.md#feedback), `layout` in
[ResRank](resrank.md#what-the-abstract-leaves-open). `e2rank train --help-config` prints the same
list, and `scripts/configuration_page.py` writes this page.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, _section("Every stage", StageConfig, set())]
    shared = {*StageConfig.model_fields, "stage"}
    for name, kind in STAGES.items():
        parts.append(_section(f"`stage: {name}`", kind, shared))
    parts += [_section(f"Block `{kind.__name__}`", kind, set()) for kind in _blocks()]
    return "\n".join(parts)


def _section(title: str, kind: type[BaseModel], left_out: set[str]) -> str:
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {_meaning(field)} |"
        for name, field in kind.model_fields.items()
        if name not in left_out
    ]
    return "\n".join(
        [f"## {title}\n", "| setting | type | default | |", "|---|---|---|---|", *rows, ""]
    )


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _type(field: FieldInfo) -> str:
    return f"`{_spelled(field.annotation).replace('|', 'or')}`"


def _spelled(annotation: Any) -> str:
    """An annotation without modules and without what pydantic adds to it."""
    if get_origin(annotation) is Annotated:
        return _spelled(get_args(annotation)[0])
    inner = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join("null" if kind is NoneType else _spelled(kind) for kind in inner)
    if get_origin(annotation) is Literal:
        return " or ".join(repr(value) for value in inner)
    name = getattr(annotation, "__name__", str(annotation))
    if not inner:
        return str(name)
    kinds = ["..." if kind is Ellipsis else _spelled(kind) for kind in inner]
    return f"{name}[{', '.join(kinds)}]"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value: Any = field.default
    if isinstance(value, BaseModel):
        return "its own defaults"
    return "`null`" if value is None else f"`{value!r}`"


def _blocks() -> Iterator[type[BaseModel]]:
    """The records of training that settings hold, each once; other pages describe the others."""
    seen: dict[type[BaseModel], None] = {}
    for kind in STAGES.values():
        for field in kind.model_fields.values():
            seen |= dict.fromkeys(_records(field.annotation))
    yield from (kind for kind in seen if kind.__module__.startswith("e2rank_rag.training"))


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _records(inner)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
