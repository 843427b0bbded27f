"""Text on a terminal: text from outside is escaped, so that it cannot control the terminal.

Documents, ids, file names, recorded model names and replies of servers may hold escape sequences
that colour, move and overwrite, and characters that change the direction of writing.
"""

from __future__ import annotations

import json
import logging
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

SHOWN_CHARACTERS = 4000
out = Console()
err = Console(stderr=True)

_JOINERS = "\u200c\u200d"  # invisible, and part of how Persian and emoji are written


def printable(text: str) -> str:
    """The text on one line, with control, bidirectional and invisible characters as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        char if _harmless(char) else char.encode("unicode_escape").decode() for char in text
    )


def printable_lines(text: str) -> str:
    """`printable` for each line of a text."""
    return "\n".join(map(printable, text.expandtabs().split("\n")))


def json_text(value: Any) -> str:
    """Indented JSON to print, escaped like `printable`; `json.loads` gives the value back."""
    written = json.dumps(value, ensure_ascii=False, indent=2)
    return "".join(
        char if char == "\n" or _harmless(char) else _json_escape(char) for char in written
    )


def say(console: Console, text: str, *, label: str = "") -> None:
    """Print one line without markup; label: printed before it, in bold red."""
    line = printable(text)
    if len(line) > SHOWN_CHARACTERS:
        line = f"{line[:SHOWN_CHARACTERS]}… ({len(line) - SHOWN_CHARACTERS:,} characters more)"
    console.print(
        Text.assemble((label, "bold red"), " " if label else "", line),
        soft_wrap=True,
        highlight=False,
    )


@contextmanager
def printable_logs() -> Iterator[None]:
    """In this context, log records and warnings of all libraries are printable."""
    record, formatted = logging.getLogRecordFactory(), warnings.formatwarning
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = lambda *args, **kwargs: printable_lines(formatted(*args, **kwargs))
    try:
        yield
    finally:
        logging.setLogRecordFactory(record)
        warnings.formatwarning = formatted


@contextmanager
def printable_usage() -> Iterator[None]:
    """In this context, errors from click and typer have printable messages."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code") and isinstance(getattr(error, "message", None), str):
            error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return printable_lines(super().getMessage())


def _harmless(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
