"""A griffe extension for the documentation site: parameters in docstrings become a list.

Docstrings here describe a parameter in a paragraph of its own, as `name: what it is`, with
continuation lines indented. Markdown would join such lines.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

PARAMETER = re.compile(r"^(\w+(?:, \w+)*): ", flags=re.MULTILINE)


class ParameterLists(griffe.Extension):
    """Rewrites each docstring as it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """`obj` is a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(docstring: str) -> str:
    """The docstring with every paragraph of `name: ...` lines as a Markdown list."""
    paragraphs = docstring.split("\n\n")
    for place, paragraph in enumerate(paragraphs):
        if PARAMETER.match(paragraph) and not paragraph.startswith("Raises"):
            paragraphs[place] = PARAMETER.sub(r"- **`\1`**: ", paragraph)
    return "\n\n".join(paragraphs)
