"""Classifies Qdrant's exceptions: transient, a missing collection, or an error to explain."""

from __future__ import annotations

import sqlite3
from json import JSONDecodeError
from math import ceil
from typing import Any

import grpc
import httpx
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from e2rank_rag.errors import StoreError
from e2rank_rag.remote import UnreadableReply, asked_wait_s
from e2rank_rag.store.answers import BYTES_PER_REQUEST

FAILURES = (
    ApiException,  # REST
    QdrantException,  # the client's own
    grpc.RpcError,
    ValueError,  # local mode, and what the client's models refuse
    RuntimeError,  # a closed client
    OSError,
    sqlite3.Error,  # a folder
)
"""Errors of a request that are about the store, not about a mistake in this library."""

MALFORMED = (AssertionError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors for a reply that is not in Qdrant's form."""

TRANSIENT_STATUS = (429, 502, 503, 504)
TRANSIENT_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
REFUSED_KEY_STATUS = (401, 403)
TOO_LARGE_STATUS = 413
SHOWN_CHARACTERS = 500

# The client accepts only a number of seconds; for a date it raises this message.
NO_INTEGER = "Retry-After header value is not a valid integer: "


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later. All requests here can be repeated."""
    if _retry_after(error) is not None:
        return True
    if isinstance(error, UnexpectedResponse):
        return error.status_code in TRANSIENT_STATUS
    if isinstance(error, ResponseHandlingException):
        return isinstance(error.source, httpx.TransportError) and not isinstance(
            error.source, httpx.UnsupportedProtocol | httpx.LocalProtocolError
        )
    return isinstance(error, grpc.RpcError) and _grpc_code(error) in TRANSIENT_CODES


def wait_asked_by(error: BaseException | None) -> float:
    """Seconds that a busy server asked to wait; 0 if it did not say."""
    return asked_wait_s(None if error is None else _retry_after(error))


def says_missing(error: BaseException) -> bool:
    """Whether the collection is missing; False for a missing point."""
    missing = (
        (isinstance(error, UnexpectedResponse) and error.status_code == 404)
        or (isinstance(error, grpc.RpcError) and _grpc_code(error) == grpc.StatusCode.NOT_FOUND)
        or isinstance(error, ValueError)
    )
    text = _server_text(error)
    return missing and "ollection" in text and ("doesn't exist" in text or "not found" in text)


def explain(error: BaseException, where: str, *, tries: int, seconds: float | None) -> StoreError:
    """The error in words: which store, its message, and what to do if that is known.

    tries: how many were made. seconds: the limit for all of them together; None: no limit.
    """
    after = f" after {tries} tries" if tries > 1 and is_transient(error) else ""
    source = error.source if isinstance(error, ResponseHandlingException) else None
    if _is_late(error, source):
        limit = "" if seconds is None else f" ({seconds:g} s)"
        return StoreError(
            f"Qdrant {where} did not answer in time{limit}{after}: raise timeout=, or write "
            f"smaller batches"
        )
    if isinstance(source, UnreadableReply):
        return StoreError(f"Qdrant {where}: {source}; ask for fewer documents at a time")
    if isinstance(error, (*MALFORMED, JSONDecodeError)) or isinstance(source, ValidationError):
        return StoreError(
            f"Qdrant {where} gave an answer that is not of Qdrant's form, is it another server? "
            f"({type(source or error).__name__}: {str(source or error)[:SHOWN_CHARACTERS]})"
        )
    if isinstance(source, httpx.TransportError) or (
        isinstance(error, grpc.RpcError) and _grpc_code(error) == grpc.StatusCode.UNAVAILABLE
    ):
        return StoreError(
            f"Qdrant {where} cannot be reached{after} ({_server_text(error)}): is the server "
            f"running, and are address and port right?"
        )
    status = f" ({error.status_code})" if isinstance(error, UnexpectedResponse) else ""
    hint = ""
    if isinstance(error, UnexpectedResponse) and error.status_code in REFUSED_KEY_STATUS:
        hint = "; check api_key="
    elif isinstance(error, UnexpectedResponse) and error.status_code == TOO_LARGE_STATUS:
        hint = (
            f"; requests are cut at {BYTES_PER_REQUEST / 1e6:g} MB, so a single document is larger "
            "than this server takes: shorten its text or meta, or raise the server's "
            "max_request_size_mb"
        )
    wait_s = wait_asked_by(error)
    asked = f"; it asks to wait {ceil(wait_s):,} s" if wait_s else ""
    return StoreError(f"Qdrant {where} refused{after}{status}: {_server_text(error)}{hint}{asked}")


def _is_late(error: BaseException, source: Any) -> bool:
    if isinstance(error, grpc.RpcError):
        return bool(_grpc_code(error) == grpc.StatusCode.DEADLINE_EXCEEDED)
    if isinstance(source, httpx.ConnectTimeout):
        return False  # nobody was there
    return isinstance(error, TimeoutError) or isinstance(source, httpx.TimeoutException)


def _retry_after(error: BaseException) -> str | None:
    """The `Retry-After` of a busy server's answer."""
    if isinstance(error, ResourceExhaustedResponse):
        return str(error.retry_after_s)
    if isinstance(error, QdrantException) and str(error).startswith(NO_INTEGER):
        return str(error).removeprefix(NO_INTEGER)
    if isinstance(error, UnexpectedResponse) and error.status_code in TRANSIENT_STATUS:
        asked: str | None = error.headers.get("Retry-After")
        return asked
    if isinstance(error, grpc.RpcError) and _grpc_code(error) == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Only errors of a finished call have metadata.
        metadata: Any = getattr(error, "trailing_metadata", tuple)() or ()
        return next((str(value) for key, value in metadata if key == "retry-after"), None)
    return None


def _server_text(error: BaseException) -> str:
    if isinstance(error, ResponseHandlingException):
        return f"{type(error.source).__name__}: {error.source}"[:SHOWN_CHARACTERS]
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return f"{_grpc_code(error)}: {error.details()}"[:SHOWN_CHARACTERS]
    if not isinstance(error, UnexpectedResponse):
        text = str(error)
        return "it is busy" if text.startswith(NO_INTEGER) else text[:SHOWN_CHARACTERS]
    try:
        return str(error.structured()["status"]["error"])[:SHOWN_CHARACTERS]
    except (ValueError, *MALFORMED):  # a proxy's page, not Qdrant's JSON
        text = error.content.decode("utf-8", "replace") or error.reason_phrase
        return text[:SHOWN_CHARACTERS]


def _grpc_code(error: BaseException) -> grpc.StatusCode | None:
    # Only errors of a finished call have a code.
    code = getattr(error, "code", None)
    return code() if callable(code) else None
