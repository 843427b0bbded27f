"""What Qdrant's exceptions mean: another try, a missing collection, or an error to explain."""

from __future__ import annotations

import sqlite3

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from e2rank_rag.errors import StoreError

FAILURES = (
    ApiException,  # REST
    QdrantException,  # the client's own
    grpc.RpcError,
    ValueError,  # local mode, and what the client's models refuse
    RuntimeError,  # a closed client
    OSError,
    sqlite3.Error,  # a folder
)
"""What a request can raise that is about the store and not a mistake in this library."""

TRANSIENT_STATUS = (429, 502, 503, 504)
TRANSIENT_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
REFUSED_KEY_STATUS = (401, 403)
SHOWN_CHARACTERS = 500


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later. Requests here can all be repeated."""
    if isinstance(error, ResourceExhaustedResponse):
        return True
    if isinstance(error, UnexpectedResponse):
        return error.status_code in TRANSIENT_STATUS
    if isinstance(error, ResponseHandlingException):
        return isinstance(error.source, httpx.TransportError) and not isinstance(
            error.source, httpx.UnsupportedProtocol | httpx.LocalProtocolError
        )
    return isinstance(error, grpc.RpcError) and _grpc_code(error) in TRANSIENT_CODES


def asked_wait_s(error: BaseException | None) -> float:
    """Seconds that a busy server asked to wait; 0 where it did not say."""
    return float(error.retry_after_s) if isinstance(error, ResourceExhaustedResponse) else 0.0


def says_missing(error: BaseException) -> bool:
    """Whether the collection is not there; a missing point is another matter."""
    missing = (
        (isinstance(error, UnexpectedResponse) and error.status_code == 404)
        or (isinstance(error, grpc.RpcError) and _grpc_code(error) == grpc.StatusCode.NOT_FOUND)
        or isinstance(error, ValueError)
    )
    text = _server_text(error)
    return missing and "ollection" in text and ("doesn't exist" in text or "not found" in text)


def explain(error: BaseException, where: str, *, tries: int) -> StoreError:
    """The same in words: which store, what it said, what to do where that is known."""
    after = f" after {tries} tries" if tries > 1 and is_transient(error) else ""
    source = error.source if isinstance(error, ResponseHandlingException) else None
    if isinstance(source, httpx.TimeoutException) and not isinstance(source, httpx.ConnectTimeout):
        return StoreError(
            f"Qdrant {where} did not answer in time{after} ({type(source).__name__}): raise "
            f"timeout=, or write smaller batches"
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
    return StoreError(f"Qdrant {where} refused{after}{status}: {_server_text(error)}{hint}")


def _server_text(error: BaseException) -> str:
    if isinstance(error, ResponseHandlingException):
        return f"{type(error.source).__name__}: {error.source}"[:SHOWN_CHARACTERS]
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return f"{_grpc_code(error)}: {error.details()}"[:SHOWN_CHARACTERS]
    if not isinstance(error, UnexpectedResponse):
        return str(error)[:SHOWN_CHARACTERS]
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):  # a proxy's page, not Qdrant's JSON
        text = error.content.decode("utf-8", "replace") or error.reason_phrase
        return text[:SHOWN_CHARACTERS]


def _grpc_code(error: BaseException) -> grpc.StatusCode | None:
    # Only errors of a finished call have a code.
    code = getattr(error, "code", None)
    return code() if callable(code) else None
