"""Sends requests to Qdrant, synchronously or asynchronously, and explains errors.

Both ways share the code that builds a request and parses its answer. On a server, async calls are
really async, and transient errors are retried. A local client has one lock (see `local_guard`), and
async calls run its synchronous methods in a thread: an AsyncQdrantClient on ":memory:" would open
an empty store, and one on a folder would find it locked.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import pickle
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from qdrant_client import AsyncQdrantClient, QdrantClient
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random,
)
from tenacity.stop import stop_base

from e2rank_rag.errors import CollectionMissing, StoredVectorMismatch, StoreError
from e2rank_rag.locks import ForkAware, Lock
from e2rank_rag.remote import within
from e2rank_rag.store.answers import Request
from e2rank_rag.store.failures import (
    FAILURES,
    MALFORMED,
    SHOWN_CHARACTERS,
    explain,
    is_transient,
    says_missing,
    wait_asked_by,
)
from e2rank_rag.store.local_guard import guard
from e2rank_rag.store.opening import MEMORY, open_client, size_warning_silenced
from e2rank_rag.store.server import async_server_client, server_client
from e2rank_rag.threads import one_team

R = TypeVar("R")

TRIES = 4
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 5.0


class Connection(ForkAware):
    """One client, with its lock, retries and settings.

    client: an open client, or the settings (`QdrantClient.init_options`) of a client for a server
        or a folder, which is then opened at first use.
    owned: close the client when the last connection that owns it is closed.

    In local mode a copy shares the client, because no other client can see those documents; on a
    server it opens its own. Closing one leaves the other open. A pickle holds the settings, the API
    key included. A forked child opens its own client for a server, because two processes that read
    from one socket would get each other's answers.
    """

    def __init__(
        self,
        client: QdrantClient | Mapping[str, Any],
        *,
        async_client: AsyncQdrantClient | None = None,
        owned: bool = False,
    ) -> None:
        self._opening = Lock()
        self._client = client if isinstance(client, QdrantClient) else None
        self._options = client.init_options if isinstance(client, QdrantClient) else client
        self.local = is_local(self._options)
        self.where = whereabouts(self._options, self._client)
        self._owned = owned or self._client is None
        self._closed = False
        if self._client is not None and self.local:
            guard(self._client)
        if self._client is not None and owned:
            _shared(self._client).owners += 1
        if async_client is not None and is_local(async_client.init_options):
            raise ValueError(
                "async_client is in memory or on a folder, with documents of its own: leave it "
                "out, and the async methods run the client's in a thread"
            )
        self._async_client = async_client
        # Pooled connections belong to the event loop that opened them, so each loop has its own.
        self._per_loop: WeakKeyDictionary[Any, AsyncQdrantClient] = WeakKeyDictionary()
        super().__init__()

    @property
    def client(self) -> QdrantClient:
        """The client; if only its settings were given, the first use opens it."""
        with self._opening:
            if self._client is None:
                self._client = _opened(self._options)
                _shared(self._client).owners += 1
            return self._client

    @property
    def options(self) -> Mapping[str, Any]:
        """The settings with which the client is opened."""
        return self._options

    @property
    def async_settings(self) -> list[str]:
        """Names of the settings in which the given async_client differs from the client."""
        if self._async_client is None:
            return []
        defaults = {
            name: each.default
            for name, each in inspect.signature(AsyncQdrantClient).parameters.items()
        }
        ours = {**defaults, **self._options}
        theirs = {**defaults, **self._async_client.init_options}
        return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))

    def send(self, request: Request[R]) -> R:
        """The result; StoreError if Qdrant refuses, is unreachable, or its answer is unreadable.

        The client's `timeout` is the limit for a request to a server, retries and waits included.
        """
        self._refuse_closed()
        tries = Tries(self._timeout_s)
        try:
            answer = self._call(request, tries)
        except self._failures as error:
            raise self._explained(error, request, tries) from error
        return self._parsed(request, answer)

    async def asend(self, request: Request[R]) -> R:
        """`send` without blocking the event loop."""
        self._refuse_closed()
        client = self._async()
        if client is None:
            return await asyncio.to_thread(self.send, request)
        tries = Tries(client.init_options.get("timeout"))
        try:
            async with asyncio.timeout(tries.seconds):
                answer: Any = await AsyncRetrying(**tries.policy())(
                    getattr(client, request.method), **request.arguments
                )
        except self._failures as error:
            raise await asyncio.to_thread(self._explained, error, request, tries) from error
        return self._parsed(request, answer)

    def close(self) -> None:
        """Close what this connection opened; a second call does nothing."""
        with self._opening:
            closed, self._closed = self._closed, True
            client = self._client
        if closed or client is None or not self._owned:
            return
        with self._lock:
            shared = _shared(client)
            shared.owners -= 1
            if shared.owners == 0:
                client.close()

    async def aclose(self) -> None:
        """`close`, also for the async client of the running event loop."""
        client = self._per_loop.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()
        self.close()

    def after_fork(self) -> None:
        if self.local or self._client is None:
            return
        self._of_the_parent = self._client  # kept: a gRPC channel cannot be closed in a child
        self._client = self._async_client = None
        self._per_loop = WeakKeyDictionary()
        self._owned = True

    def __copy__(self) -> Connection:
        if self._client is not None and not self._owned:
            return Connection(self._client, async_client=self._async_client)
        if self.local and self._client is not None and not self._closed:
            return Connection(self._client, owned=True)
        return Connection(self._settings())

    def __deepcopy__(self, memo: dict[int, Any]) -> Connection:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        if own := self.async_settings:
            raise TypeError(
                f"the async_client of the store {self.where} has {', '.join(own)} of its own, "
                "which a pickle does not keep: give both clients the same settings"
            )
        settings = self._settings()
        try:
            pickle.dumps(settings)
        except Exception as error:
            raise TypeError(
                f"the client of the store {self.where} cannot be pickled, since one of its "
                f"settings cannot ({error}): make the store anew where it is needed"
            ) from error
        return Connection, (settings,)

    def _settings(self) -> dict[str, Any]:
        """The settings, valid in any working directory."""
        options = dict(self._options)
        if options.get("path") is not None:
            options["path"] = str(Path(options["path"]).expanduser().absolute())
        elif self.local:
            raise TypeError(
                f"a store {self.where} cannot be pickled, nor copied when it is closed: its "
                "documents are in this process only. Use a folder or a server"
            )
        return options

    @property
    def _lock(self) -> AbstractContextManager[Any]:
        return guard(self.client) if self.local else nullcontext()

    def _call(self, request: Request[R], tries: Tries) -> Any:
        method = getattr(self.client, request.method)
        if not self.local:
            retrying = Retrying(**tries.policy())
            return within(tries.seconds, partial(retrying, method, **request.arguments))
        quiet = size_warning_silenced() if request.method == "upsert" else nullcontext()
        with self._lock, quiet:
            return one_team(method)(**request.arguments)

    def _async(self) -> AsyncQdrantClient | None:
        if self._async_client is not None:
            return self._async_client
        if self.local or not self._owned:
            return None
        loop = asyncio.get_running_loop()
        client = self._per_loop.get(loop)
        if client is None:
            client = self._per_loop[loop] = async_server_client(self._options)
        return client

    @property
    def _timeout_s(self) -> float | None:
        """The limit for one call in seconds; None in local mode and for a client without one."""
        timeout: float | None = self._options.get("timeout")
        return None if self.local else timeout

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        return FAILURES if self.local else (*FAILURES, *MALFORMED)

    def _parsed(self, request: Request[R], answer: Any) -> R:
        try:
            return request.parse(answer)
        except StoredVectorMismatch:
            raise
        except (ValueError, *MALFORMED) as error:
            raise StoreError(
                f"Qdrant {self.where} gave an answer to {request.method} that cannot be read "
                f"({type(error).__name__}: {str(error)[:SHOWN_CHARACTERS]})"
            ) from error

    def _explained(self, error: Exception, request: Request[R], tries: Tries) -> StoreError:
        if says_missing(error):
            collection = request.arguments.get("collection_name")
            return CollectionMissing(
                f"collection {collection!r} is not there {self.where}: index documents first. "
                f"{self._collections(tries)}"
            )
        return explain(error, self.where, tries=tries.count, seconds=tries.seconds)

    def _collections(self, tries: Tries) -> str:
        try:
            with self._lock:
                answer = within(tries.seconds_left(), self.client.get_collections)
            names = sorted(collection.name for collection in answer.collections)
        except self._failures:  # a key for one collection may not list the others
            return "The collections that are there cannot be listed."
        return f"Collections that are there: {', '.join(map(repr, names)) or 'none'}."

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.where} is closed: open it again")


def is_local(options: Mapping[str, Any]) -> bool:
    """Whether a client with these settings is in local mode, in memory or in a folder."""
    return options.get("location") == MEMORY or options.get("path") is not None


def whereabouts(options: Mapping[str, Any], client: QdrantClient | None) -> str:
    """The place as a phrase; every in-memory client has its own number."""
    if options.get("path") is not None:
        return f"in folder {options['path']}"
    if options.get("location") == MEMORY:
        return "in memory" if client is None else f"in memory #{_shared(client).number}"
    url = options.get("url") or options.get("location")
    if url is None:
        url = f"{options.get('host') or 'localhost'}:{options.get('port')}"
    # Messages must not show credentials: user and password before the host, or a key in a query.
    scheme, slashes, rest = url.rpartition("://")
    return f"at {scheme}{slashes}{re.split('[?#]', rest.rpartition('@')[2])[0]}"


class _Shared:
    """Shared by the connections over one client. The last owner to close closes the client."""

    def __init__(self) -> None:
        self.number = next(_next_number)
        self.owners = 0


_by_client: WeakKeyDictionary[QdrantClient, _Shared] = WeakKeyDictionary()
_next_number = itertools.count(1)
_registry_lock = Lock()


def _shared(client: QdrantClient) -> _Shared:
    with _registry_lock:
        if client not in _by_client:
            _by_client[client] = _Shared()
        return _by_client[client]


def _opened(options: Mapping[str, Any]) -> QdrantClient:
    if options.get("path") is not None:
        return open_client(options["path"], api_key=None, prefer_grpc=False, timeout=0)
    return server_client(options)


class Tries:
    """The tries of one call. count: tries so far. seconds: limit for all; None: no limit."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.count = 0
        self._started = monotonic()

    def seconds_left(self) -> float | None:
        """The seconds that remain; None without a limit."""
        if self.seconds is None:
            return None
        return max(0.0, self.seconds - (monotonic() - self._started))

    def policy(self) -> dict[str, Any]:
        """The arguments of tenacity's `Retrying` and `AsyncRetrying`."""
        stop: stop_base = stop_after_attempt(TRIES)
        if self.seconds is not None:
            stop = stop | stop_before_delay(self.seconds)
        return {
            "before": self._count,
            "stop": stop,
            "wait": _wait_s,
            "retry": retry_if_exception(is_transient),
            "reraise": True,
        }

    def _count(self, state: RetryCallState) -> None:
        self.count = state.attempt_number


def _wait_s(state: RetryCallState) -> float:
    backoff = wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)
    seconds = (backoff + wait_random(0, FIRST_WAIT_S))(state)
    error = state.outcome.exception() if state.outcome is not None else None
    return max(seconds, wait_asked_by(error))
