"""Documents from a file of JSON lines, in the forms of BEIR and Pyserini.

One record per line: `{"_id" or "id", "text" or "content" or "contents", "title"?, "metadata" or
"meta"?}`. Every other field goes to the document's meta.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from e2rank_rag.lines import count_lines, decode, read_lines
from e2rank_rag.types import Document

__all__ = [
    "BadRecord",
    "compose_text",
    "count_lines",
    "is_query",
    "read_documents",
    "read_numbered",
]

_ID_FIELDS = ("_id", "id")
_TEXT_FIELDS = ("text", "content", "contents")
_META_FIELDS = ("metadata", "meta")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line that is not a document; `id` is None if the line has none."""

    line: int
    reason: str
    id: str | None = None


def compose_text(title: str, text: str) -> str:
    """The text that is encoded and shown: title and text, joined as in BEIR."""
    return f"{title} {text}".strip()


def is_query(document: Document, query: str) -> bool:
    """Whether a document is the query itself, as in datasets whose queries are documents.

    The texts are compared with and without the title, and with any white space.
    """
    title = document.meta.get("title")
    text = document.text.split()
    titled = compose_text(title, query) if isinstance(title, str) else query
    return text in (query.split(), titled.split())


def read_documents(
    path: str | Path, *, on_bad: Callable[[BadRecord], None] | None = None
) -> Iterator[Document]:
    """The documents of a `.jsonl` or `.jsonl.gz` file, in file order; an empty file yields none.

    The text is `compose_text(title, text)`; meta has the other fields, then those of `metadata` or
    `meta`, then the title if there is one. Repeated ids are not checked.

    Args:
        path: UTF-8, with or without a byte order mark; blank lines are skipped.
        on_bad: called with each line that is not a document, which is then left out.

    Raises:
        OSError: at once, if the file is missing or is a folder.
        ValueError: while reading: `FILE, line N: reason` for a bad line if `on_bad` is None, and in
            any case for gzip data that end early.
    """
    return (document for _, document in read_numbered(path, on_bad=on_bad))


def read_numbered(
    path: str | Path, *, on_bad: Callable[[BadRecord], None] | None = None
) -> Iterator[tuple[int, Document]]:
    """Like `read_documents`, with the line number of each document, from 1."""
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; name a file of JSON lines, "
            "or open a BEIR folder with Collection.open"
        )
    Path(path).stat()  # a missing file is an error of this call, not of the first next()
    return _read(Path(path), on_bad)


class _Refused(Exception):
    def __init__(self, reason: str, doc_id: str | None = None) -> None:
        super().__init__(reason)
        self.doc_id = doc_id


def _read(path: Path, on_bad: Callable[[BadRecord], None] | None) -> Iterator[tuple[int, Document]]:
    def refuse(number: int, reason: str, doc_id: str | None = None) -> None:
        if on_bad is None:
            raise ValueError(f"{path}, line {number}: {reason}")
        on_bad(BadRecord(number, reason, doc_id))

    for number, line in read_lines(path, on_long=refuse):
        try:
            document = _document(line)
        except _Refused as refused:
            refuse(number, str(refused), refused.doc_id)
        else:
            yield number, document


def _document(line: bytes) -> Document:
    record = _json_object(line)
    id_field, doc_id = _id(record)
    # Decoded UTF-8 holds no surrogate; only a \ud... escape can.
    if b"\\ud" in line or b"\\uD" in line:
        _refuse_surrogates(record, doc_id)
    title = _string(record, "title", doc_id)
    text_field = _text_field(record, doc_id)
    text = compose_text(title, _string(record, text_field, doc_id))
    if not text:
        raise _Refused(f"no text: {text_field} and title are empty or only white space", doc_id)
    taken = {id_field, text_field, "title", *_META_FIELDS}
    meta = {name: value for name, value in record.items() if name not in taken}
    for name in _META_FIELDS:
        meta.update(_object(record, name, doc_id))
    if title.strip():
        meta["title"] = title
    return Document(doc_id, text, meta)


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(decode(line), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _Refused(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except ValueError as error:
        raise _Refused(str(error)) from error
    except RecursionError as error:
        raise _Refused("not readable as JSON: nested too deeply") from error
    if not isinstance(record, dict):
        raise _Refused(f"a record must be a JSON object, got {_kind(record)}")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no JSON value; write null or leave the field out")


def _id(record: dict[str, Any]) -> tuple[str, str]:
    """The name of the id's field, and the id."""
    for name in _ID_FIELDS:
        value = record.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise _Refused(f"{name} must be a string or a whole number, got {_kind(value)}")
        if not str(value).strip():
            raise _Refused(f"{name} is empty; give the document an id")
        return name, str(value)
    raise _Refused(f"no id: expected _id or id, {_fields(record)}")


def _text_field(record: dict[str, Any], doc_id: str) -> str:
    """The first text field that is not null. A title alone makes no document."""
    there = [name for name in _TEXT_FIELDS if name in record]
    if not there:
        raise _Refused(f"no text: expected text, content or contents, {_fields(record)}", doc_id)
    return next((name for name in there if record[name] is not None), there[0])


def _string(record: dict[str, Any], name: str, doc_id: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Refused(f"{name} must be a string, got {_kind(value)}", doc_id)
    return value


def _object(record: dict[str, Any], name: str, doc_id: str) -> dict[str, Any]:
    value = record.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Refused(f"{name} must be a JSON object, got {_kind(value)}", doc_id)
    return value


def _refuse_surrogates(record: dict[str, Any], doc_id: str) -> None:
    """Refuse half a surrogate pair, which no store and no tokenizer takes: it has no UTF-8."""
    known_id = None if _SURROGATE.search(doc_id) else doc_id
    left: list[tuple[str, Any]] = [("", record)]  # a stack: nesting may be deeper than Python's own
    while left:
        field, value = left.pop()
        if isinstance(value, str):
            _refuse_surrogate(value, field, known_id)
        elif isinstance(value, list):
            left.extend((f"{field}[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            for name, item in value.items():
                _refuse_surrogate(name, f"a field name of {field or 'the record'}", known_id)
                left.append((f"{field}.{name}" if field else name, item))


def _refuse_surrogate(value: str, field: str, doc_id: str | None) -> None:
    if found := _SURROGATE.search(value):
        raise _Refused(
            f"lone surrogate U+{ord(found[0]):04X} at character {found.start() + 1} of {field}: "
            "half a character, which UTF-8 cannot hold",
            doc_id,
        )


def _fields(record: dict[str, Any]) -> str:
    # ascii(), because a name may hold a lone surrogate, which no terminal or log can print.
    return f"the record has {', '.join(map(ascii, record))}" if record else "the record is empty"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return names.get(type(value), "null")
