"""Writes docs/configuration.md from the classes of `e2rank_rag.training.config`.

python scripts/configuration_page.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from e2rank_rag.training.config import STAGES, StageConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

HEAD = """\
# Configuration

A stage of training is one YAML file. [Training](training.md) shows whole files, and `e2rank_rag/training/configs/` holds some.
Every stage has the first table's settings and those of its own. `scripts/configuration_page.py` writes this page from
`e2rank_rag/training/config.py`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, _section("Every stage", StageConfig, set())]
    shared = set(StageConfig.model_fields)
    for name, kind in STAGES.items():
        parts.append(_section(f"`stage: {name}`", kind, shared))
    parts += [_section(f"Block `{kind.__name__}`", kind, set()) for kind in _blocks()]
    return "\n".join(parts)


def _section(title: str, kind: type[BaseModel], left_out: set[str]) -> str:
    meanings = _meanings(kind)
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {_meaning(field, meanings.get(name))} |"
        for name, field in kind.model_fields.items()
        if name not in left_out
    ]
    return "\n".join(
        [f"## {title}\n", "| setting | type | default | |", "|---|---|---|---|", *rows, ""]
    )


def _meanings(kind: type[BaseModel]) -> dict[str, str]:
    """What docstrings say of each field: paragraphs of `name, name: meaning` lines."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        for names, meaning in re.findall(r"^([\w, ]+): (.+(?:\n    .+)*)", text, re.MULTILINE):
            found |= {name.strip(): " ".join(meaning.split()) for name in names.split(",")}
        for names, meaning in re.findall(r"[;.] (\w+): ([^;\n]+)", text):
            found.setdefault(names, meaning)
    return found


def _meaning(field: FieldInfo, told: str | None) -> str:
    text = " ".join((field.description or told or "").split())
    return text.replace("|", "\\|")


def _type(field: FieldInfo) -> str:
    name = inspect.formatannotation(field.annotation)
    name = re.sub(r"\b(?:[\w]+\.)+(?=\w)", "", name).replace("Annotated[", "").replace("|", "or")
    name = re.sub(r", (?:BeforeValidator|FieldInfo|Field|Ge|Le)\(.*?\)\]?", "", name)
    return f"`{name}`"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value: Any = field.default
    return "its own defaults" if isinstance(value, BaseModel) else f"`{value!r}`"


def _blocks() -> Iterator[type[BaseModel]]:
    """The records that settings hold, each once."""
    seen: dict[type[BaseModel], None] = {}
    for kind in STAGES.values():
        for field in kind.model_fields.values():
            seen |= dict.fromkeys(_records(field.annotation))
    yield from seen


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _records(inner)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
