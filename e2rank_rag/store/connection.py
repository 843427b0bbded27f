"""Sending Qdrant one request, synchronously or not, and saying in plain words what went wrong.

A request is built once and its answer parsed once, for both ways of sending it. A server gets true
async calls and retries of what is transient; a local client gets one lock (see `local_guard`), and
async calls run its synchronous ones in a thread: an AsyncQdrantClient on ":memory:" would open an
empty store, and one on a folder would find it locked.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from contextlib import nullcontext
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from qdrant_client import AsyncQdrantClient, QdrantClient
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from e2rank_rag.errors import StoreError
from e2rank_rag.store.failures import FAILURES, asked_wait_s, explain, is_transient, says_missing
from e2rank_rag.store.local_guard import guard
from e2rank_rag.store.opening import MEMORY, size_warning_silenced
from e2rank_rag.store.requests import Request

R = TypeVar("R")

TRIES = 4
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 5.0


class Connection:
    """One client, and what belongs to it. `owned`: close it with the connection."""

    def __init__(
        self,
        client: QdrantClient,
        *,
        async_client: AsyncQdrantClient | None = None,
        owned: bool = False,
    ) -> None:
        self.client = client
        self.local = is_local(client)
        self.where = whereabouts(client)
        self._owned = owned
        self._closed = False
        self._lock = guard(client) if self.local else nullcontext()
        if async_client is not None and is_local(async_client):
            raise ValueError(
                "async_client is in memory or on a folder, with documents of its own: leave it "
                "out, and the async methods run the client's in a thread"
            )
        self._async_client = async_client
        # Pooled connections belong to the event loop that opened them, so each loop has its own.
        self._per_loop: WeakKeyDictionary[Any, AsyncQdrantClient] = WeakKeyDictionary()

    def send(self, request: Request[R]) -> R:
        """StoreError where Qdrant refuses, or is not there after retries."""
        self._refuse_closed()
        try:
            answer = self._call(request)
        except FAILURES as error:
            raise self._explained(error, request) from error
        return request.parse(answer)

    async def asend(self, request: Request[R]) -> R:
        """As `send`, without blocking the event loop."""
        self._refuse_closed()
        client = self._async()
        if client is None:
            return await asyncio.to_thread(self.send, request)
        try:
            answer: Any = await AsyncRetrying(**_retry_policy())(
                getattr(client, request.method), **request.arguments
            )
        except FAILURES as error:
            raise await asyncio.to_thread(self._explained, error, request) from error
        return request.parse(answer)

    def close(self) -> None:
        """Close what this connection opened; a second call does nothing."""
        if not self._closed and self._owned:
            with self._lock:
                self.client.close()
        self._closed = True

    async def aclose(self) -> None:
        """As `close`, and with it the async client of the running event loop."""
        client = self._per_loop.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()
        self.close()

    def _call(self, request: Request[R]) -> Any:
        method = getattr(self.client, request.method)
        if not self.local:
            return Retrying(**_retry_policy())(method, **request.arguments)
        quiet = size_warning_silenced() if request.method == "upsert" else nullcontext()
        with self._lock, quiet:
            return method(**request.arguments)

    def _async(self) -> AsyncQdrantClient | None:
        if self._async_client is not None:
            return self._async_client
        if self.local or not self._owned:
            return None
        loop = asyncio.get_running_loop()
        client = self._per_loop.get(loop)
        if client is None:
            client = self._per_loop[loop] = AsyncQdrantClient(**self.client.init_options)
        return client

    def _explained(self, error: Exception, request: Request[R]) -> StoreError:
        if says_missing(error):
            collection = request.arguments.get("collection_name")
            return StoreError(
                f"collection {collection!r} is not there {self.where}: index documents first. "
                f"{self._collections()}"
            )
        return explain(error, self.where, tries=1 if self.local else TRIES)

    def _collections(self) -> str:
        try:
            with self._lock:
                names = sorted(c.name for c in self.client.get_collections().collections)
        except FAILURES:  # a key for one collection may not list the others
            return "The collections that are there cannot be listed."
        return f"Collections that are there: {', '.join(map(repr, names)) or 'none'}."

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.where} is closed: open it again")


def is_local(client: QdrantClient | AsyncQdrantClient) -> bool:
    """Whether a client computes in this process, over memory or a folder."""
    options = client.init_options
    return options.get("location") == MEMORY or options.get("path") is not None


def whereabouts(client: QdrantClient) -> str:
    """The place as a phrase; every in-memory client has a number of its own."""
    options = client.init_options
    if options.get("path") is not None:
        return f"in folder {options['path']}"
    if options.get("location") == MEMORY:
        return f"in memory #{_memory_number(client)}"
    url = options.get("url") or options.get("location")
    if url is None:
        url = f"{options.get('host') or 'localhost'}:{options.get('port')}"
    return f"at {re.sub(r'//[^/@]*@', '//', url)}"  # credentials stay out of messages


# Stores that share a client share its name.
_numbers: WeakKeyDictionary[QdrantClient, int] = WeakKeyDictionary()
_next_number = itertools.count(1)
_registry_lock = threading.Lock()


def _memory_number(client: QdrantClient) -> int:
    with _registry_lock:
        if client not in _numbers:
            _numbers[client] = next(_next_number)
        return _numbers[client]


def _retry_policy() -> dict[str, Any]:
    return {
        "stop": stop_after_attempt(TRIES),
        "wait": _wait_s,
        "retry": retry_if_exception(is_transient),
        "reraise": True,
    }


def _wait_s(state: RetryCallState) -> float:
    backoff = wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)
    seconds = (backoff + wait_random(0, FIRST_WAIT_S))(state)
    error = state.outcome.exception() if state.outcome is not None else None
    return min(max(seconds, asked_wait_s(error)), LONGEST_WAIT_S + FIRST_WAIT_S)
