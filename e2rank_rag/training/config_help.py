"""Every field of the configurations, as `e2rank train --help-config` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from e2rank_rag.training.config import STAGES, StageConfig


def config_help() -> str:
    """The fields of every stage with type, default and description, one paragraph a field."""
    lines = ["Every stage", "", *_fields(StageConfig)]
    for name, stage in STAGES.items():
        lines += ["", f"stage: {name}", "", *_fields(stage, without=StageConfig)]
    return "\n".join(lines)


def _fields(
    record: type[BaseModel], *, without: type[BaseModel] | None = None, block: str = ""
) -> Iterator[str]:
    known = set() if without is None else set(without.model_fields)
    for name, field in record.model_fields.items():
        if name in known or name == "stage":
            continue
        default = "required" if field.is_required() else _shown(field.default)
        yield f"  {block}{name} ({default}): {field.description or ''}".rstrip(": ")
        for part in _records(field.annotation):
            yield from _fields(part, block=f"{block}{name}.")


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    """The records of this package's training that an annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation.__module__.startswith("e2rank_rag.training"):
            yield annotation
        return
    for part in get_args(annotation):
        yield from _records(part)
