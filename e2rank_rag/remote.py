"""Limits for every call to a server: one deadline, a largest reply, and the wait it asks for.

A timeout of httpx is for one read, so a reply that comes byte by byte is never late. httpx also
sets no limit on a reply's size, and none on all tries and waits together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, TypeVar

import httpx

R = TypeVar("R")

LONGEST_TIMEOUT_S = 2_000_000
"""23 days, because sockets take at most 2**31 milliseconds."""

LONGEST_REPLY_BYTES = 128 * 2**20
"""The largest reply; after parsing it takes about four times as much memory."""


class UnreadableReply(Exception):
    """A reply that was not read to its end: it is too long, or compressed without a request."""


def check_timeout(seconds: Any, *, name: str) -> None:
    """Raise ValueError unless `seconds` is above 0 and at most `LONGEST_TIMEOUT_S`."""
    if not (isinstance(seconds, int | float) and 0 < seconds <= LONGEST_TIMEOUT_S):
        raise ValueError(
            f"{name} must be > 0 seconds and at most {LONGEST_TIMEOUT_S:,}, got {seconds!r}"
        )


def within(seconds: float | None, call: Callable[[], R]) -> R:
    """The result of a blocking call; TimeoutError after so many seconds; None: no limit.

    After a timeout the call goes on in its own thread, which does not keep the process alive, and
    its result is lost. Async code has `asyncio.timeout`, which ends the call.
    """
    if seconds is None:
        return call()
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()
    return future.result(seconds)


def asked_wait_s(retry_after: str | None) -> float:
    """The wait in seconds from a `Retry-After` header, a number or a date; 0 without one."""
    value = (retry_after or "").strip()
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value)
    return max(seconds, 0.0) if isfinite(seconds) else 0.0


def reply_limits() -> dict[str, Any]:
    """`event_hooks` for an httpx.Client: replies beyond the limit raise UnreadableReply."""
    return {"request": [_ask_plain], "response": [_limit]}


def async_reply_limits() -> dict[str, Any]:
    """`event_hooks` of an httpx.AsyncClient; see `reply_limits`."""

    async def ask_plain(request: httpx.Request) -> None:
        _ask_plain(request)

    async def limit(response: httpx.Response) -> None:
        _limit(response)

    return {"request": [ask_plain], "response": [limit]}


def _seconds_until(date: str) -> float:
    try:
        until = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return (until - datetime.now(UTC)).total_seconds()


def _ask_plain(request: httpx.Request) -> None:
    # A few bytes of gzip can unpack to more than memory holds.
    request.headers["Accept-Encoding"] = "identity"


def _limit(response: httpx.Response) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnreadableReply(f"the reply is encoded as {encoding!r}, which was not asked for")
    timeout = response.request.extensions.get("timeout", {}).get("read")
    response.stream = _Limited(response.stream, timeout)


class _Limited(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The bytes of a reply, up to the limits on size and time."""

    def __init__(self, stream: Any, seconds: float | None) -> None:
        self._stream = stream
        self._until = None if seconds is None else time.monotonic() + seconds
        self._bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._count(chunk)
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._count(chunk)
            yield chunk

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _count(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes > LONGEST_REPLY_BYTES:
            raise UnreadableReply(
                f"the reply is longer than {LONGEST_REPLY_BYTES:,} bytes, and was not read further"
            )
        if self._until is not None and time.monotonic() > self._until:
            raise httpx.ReadTimeout("the reply was not complete in time")
