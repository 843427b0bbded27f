"""The layout of a point: converts a document to point id and payload, and back.

The default is Haystack's: the id of a point is `uuid5` of the document's id, and the payload is
exactly `{id, content, meta}`. Haystack would show any other key in the meta of its documents.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from e2rank_rag.errors import StoreError
from e2rank_rag.types import Document

HAYSTACK_NAMESPACE = uuid.UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d")
UINT64_LIMIT = 2**64
INT64_LIMIT = 2**63
# The ids that qdrant-client takes; a UUID is always a string here.
PointId = int | str | uuid.UUID


@dataclass(frozen=True, slots=True)
class Layout:
    """The payload keys, and the place of a document's id.

    id_key: payload key of the document's id. The point id is its `uuid5`, so a collection with
        other point ids cannot be read by id. None: the point id, as text, is the document's id.
    """

    id_key: str | None = "id"
    content_key: str = "content"
    metadata_key: str = "meta"

    all_vectors: ClassVar[bool] = False
    """Whether `document` needs all vectors of a point, not only the searched one."""

    @property
    def keys(self) -> list[str]:
        """The payload keys that hold a document."""
        return [
            key for key in (self.id_key, self.content_key, self.metadata_key) if key is not None
        ]

    def point_id(self, id: str) -> PointId:
        """The point id of a document.

        ValueError if point ids are document ids, and this one is neither a UUID nor an integer of
        64 bits, which are the only ids that Qdrant takes.
        """
        check_text(id, f"the document id {id!r}")
        if self.id_key is not None:
            return str(uuid.uuid5(HAYSTACK_NAMESPACE, id))
        # "007" stays out: it would come back as "7".
        if len(id) <= 20 and id.isdecimal() and str(int(id)) == id and int(id) < UINT64_LIMIT:
            return int(id)
        try:
            return str(uuid.UUID(id))
        except ValueError as error:
            raise ValueError(
                f"the document id {id!r} cannot be a point id: with id_key=None ids are UUIDs or "
                f"integers below 2**64. Use such ids, or a layout with an id_key"
            ) from error

    def payload(self, document: Document) -> dict[str, Any]:
        """The payload, as JSON values; ValueError, naming the document, for other values."""
        where = f"document {document.id!r}"
        check_text(document.text, f"the text of {where}")
        payload: dict[str, Any] = {} if self.id_key is None else {self.id_key: document.id}
        payload[self.content_key] = document.text
        payload[self.metadata_key] = self.metadata(document)
        return payload

    def metadata(self, document: Document) -> dict[str, Any]:
        """A document's meta as JSON values; ValueError, naming the field, for other values."""
        if not isinstance(document.meta, Mapping):
            raise ValueError(
                f"the meta of document {document.id!r} is {type(document.meta).__name__}, "
                f"not a mapping"
            )
        return {
            _checked_key(key, document.id): _plain(value, f"meta[{key!r}]", document.id)
            for key, value in document.meta.items()
        }

    def document(self, point: Any) -> Document:
        """The document of a point with its payload; StoreError for another layout's keys."""
        payload = point.payload or {}
        if self.content_key not in payload:
            raise StoreError(
                f"point {point.id} has no {self.content_key!r}, its payload holds "
                f"{sorted(payload)}: open the collection with a Layout that names its keys"
            )
        id = self.document_id(point)
        # Haystack writes null for a document without text, LangChain for one without metadata.
        text = _or_default(payload[self.content_key], "")
        meta = _or_default(payload.get(self.metadata_key), {})
        for value, key, kind in ((text, self.content_key, str), (meta, self.metadata_key, dict)):
            if not isinstance(value, kind):
                raise StoreError(
                    f"document {id!r} (point {point.id}) has {str(value)[:100]!r} at {key!r}, "
                    f"{type(value).__name__} and not {kind.__name__}: open the collection with a "
                    f"Layout that names its keys, or mend the document"
                )
        return Document(id=id, text=text, meta=meta)

    def document_id(self, point: Any) -> str:
        """The document id of a point; its payload must hold at least the id."""
        if self.id_key is None:
            return str(point.id)
        id = (point.payload or {}).get(self.id_key)
        if not isinstance(id, str):
            raise StoreError(
                f"point {point.id} has no document id at {self.id_key!r} (found {id!r}): open the "
                f"collection with a Layout whose id_key is right, or None to use the point ids"
            )
        return id


LANGCHAIN_LAYOUT = Layout(id_key=None, content_key="page_content", metadata_key="metadata")
"""The default layout of langchain-qdrant."""


def check_text(text: Any, what: str) -> None:
    """ValueError unless `text` is a str that UTF-8 can encode."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {type(text).__name__}, not str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds {text[error.start]!r} at character {error.start}, half of a surrogate "
            f"pair, which no store can write: repair it first, for example with "
            f"text.encode('utf-8', 'replace').decode('utf-8')"
        ) from error


def same_meta(stored: Document, given: Document) -> bool:
    """Whether a stored document has the meta of the given one, compared as JSON."""
    return same_json(stored.meta, Layout().metadata(given))


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON: 1 equals 1.0, and true equals neither."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def _or_default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _checked_key(key: Any, id: str) -> str:
    check_text(key, f"the meta key {key!r} of document {id!r}")
    return str(key)


def _plain(value: Any, path: str, id: str) -> Any:
    """The value, made of dict, list, str, int, float, bool and None only."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        check_text(value, f"{path} of document {id!r}")
        return value
    if kind is int and -INT64_LIMIT <= value < INT64_LIMIT:
        return value
    if kind is float and isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {
            _checked_key(key, id): _plain(item, f"{path}[{key!r}]", id)
            for key, item in value.items()
        }
    if kind in (list, tuple):
        return [_plain(item, f"{path}[{i}]", id) for i, item in enumerate(value)]
    raise ValueError(
        f"{path} of document {id!r} is {value!r} ({kind.__module__}.{kind.__qualname__}), which "
        f"JSON cannot hold: use str, bool, None, integers of 64 bits, finite floats, lists and "
        f"dicts of them; a date as value.isoformat(), a numpy value as value.tolist()"
    )
