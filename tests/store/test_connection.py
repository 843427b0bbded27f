"""Errors, retries and async calls, against real HTTP servers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient

from e2rank_rag.errors import StoreError
from e2rank_rag.store import QdrantStore, connection
from e2rank_rag.types import Document

COUNTED = (200, {"result": {"count": 3}, "status": "ok", "time": 0.0})


class TinyServer:
    """Answers every request with the next of `answers` (status, JSON), the last one for ever."""

    def __init__(self, answers, *, delay_s=0.0, retry_after=None):
        self.paths = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.paths.append(self.path)
                time.sleep(delay_s)
                status, body = answers[min(len(outer.paths), len(answers)) - 1]
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if retry_after is not None:
                    self.send_header("Retry-After", retry_after)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(connection, "LONGEST_WAIT_S", 0.02)


def refused(status, message="sorry"):
    return (status, {"status": {"error": message}, "time": 0.0})


# Retries


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_transient_answers_are_tried_again(status):
    with TinyServer([refused(status), refused(status), COUNTED]) as server:
        store = QdrantStore.open(server.url, "c")
        assert store.count() == 3
        store.close()
    assert server.paths == ["/collections/c/points/count"] * 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_transient_answers_are_tried_again_by_async_calls(status):
    with TinyServer([refused(status), refused(status), COUNTED]) as server:
        store = QdrantStore.open(server.url, "c")
        assert await store.acount() == 3
        await store.aclose()
    assert len(server.paths) == 3


def test_tries_end_after_four():
    with TinyServer([refused(503, "overloaded")]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=r"after 4 tries \(503\): overloaded"):
            store.count()
        store.close()
    assert len(server.paths) == 4


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "Wrong input: no such field"), (401, "Must provide an API key"), (500, "panic")],
)
def test_other_errors_surface_at_once_with_the_servers_message(status, message):
    with TinyServer([refused(status, message)]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=rf"refused \({status}\): {message}"):
            store.count()
        store.close()
    assert len(server.paths) == 1


def test_refused_key_hints_at_api_key():
    with TinyServer([refused(403, "Forbidden")]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match="check api_key="):
            store.count()
        store.close()


def test_a_document_that_is_too_large_for_the_server_is_said_to_be_one():
    with TinyServer([refused(413, "Payload error: JSON payload is too large")]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=r"\(413\).*single document.*max_request_size_mb"):
            store.delete(["a"])
        store.close()


def test_page_of_a_proxy_is_shown_as_text():
    with TinyServer([(413, b"<html>too large</html>")]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=r"\(413\): <html>too large</html>"):
            store.count()
        store.close()


def test_missing_collection_on_a_server_names_those_there():
    there = (200, {"result": {"collections": [{"name": "news"}]}, "status": "ok", "time": 0.0})
    missing = refused(404, "Not found: Collection `c` doesn't exist!")
    with TinyServer([missing, there]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=r"'c' is not there at http://.* first.*: 'news'"):
            store.count()
        store.close()


def test_missing_collection_of_a_key_that_may_not_list_is_still_said():
    missing = refused(404, "Not found: Collection `c` doesn't exist!")
    with TinyServer([missing, refused(403)]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=r"'c' is not there .* cannot be listed"):
            store.count()
        store.close()


def test_missing_point_is_not_taken_for_a_missing_collection():
    with TinyServer([refused(404, "Not found: No point with id 7 found")]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match="No point with id 7"):
            store.count()
        store.close()


@pytest.mark.parametrize("status", [429, 503])
async def test_the_wait_that_a_busy_server_asks_for_is_kept(status, monkeypatch):
    waits, sleep = [], asyncio.sleep

    async def asleep(seconds):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setattr("asyncio.sleep", asleep)
    with TinyServer([refused(status), COUNTED] * 2, retry_after="0.3") as server:
        store = QdrantStore.open(server.url, "c")
        assert store.count() == 3
        assert max(waits) >= 0.3
        waits.clear()
        server.paths.clear()
        assert await store.acount() == 3
        assert max(waits) >= 0.3
        await store.aclose()


def test_a_busy_server_may_name_the_date_of_the_next_try():
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    with TinyServer([refused(429), COUNTED], retry_after=until) as server:
        store = QdrantStore.open(server.url, "c")
        assert store.count() == 3
        assert datetime.now(UTC) >= parsedate_to_datetime(until)
        store.close()


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_beyond_the_deadline_ends_the_call_at_once(status):
    with TinyServer([refused(status, "busy")], retry_after="60") as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match="busy; it asks to wait 60 s"):
            store.count()
        store.close()
    assert len(server.paths) == 1


def test_unreachable_server_is_said_at_first_use():
    with TinyServer([COUNTED]) as server:
        url = server.url
    store = QdrantStore.open(url, "c")
    with pytest.raises(StoreError, match=f"{url} cannot be reached after 4 tries.*is the server"):
        store.count()
    store.close()


def test_unreachable_grpc_server_is_said_at_first_use():
    client = QdrantClient(
        url="http://127.0.0.1:9",
        grpc_port=9,
        prefer_grpc=True,
        timeout=2,
        check_compatibility=False,
    )
    with pytest.raises(StoreError, match="cannot be reached after 4 tries"):
        QdrantStore(client, "c").count()
    client.close()


def test_local_mode_never_retries(monkeypatch):
    store = QdrantStore.open(":memory:", "c")
    calls = []

    def locked(**arguments):
        calls.append(arguments)
        raise OSError("disk")

    monkeypatch.setattr(store.client, "count", locked)
    with pytest.raises(StoreError, match="disk"):
        store.count()
    assert len(calls) == 1
    store.close()


# Async


async def ticks_during(call):
    count = 0

    async def tick():
        nonlocal count
        while True:
            await asyncio.sleep(0.01)
            count += 1

    ticking = asyncio.create_task(tick())
    result = await call
    ticking.cancel()
    return count, result


@pytest.mark.parametrize("kind", ["opened", "foreign client", "foreign with async client"])
async def test_event_loop_ticks_while_a_server_thinks(kind):
    with TinyServer([COUNTED], delay_s=0.3) as server:
        if kind == "opened":
            store = QdrantStore.open(server.url, "c")
        else:
            client = QdrantClient(url=server.url, check_compatibility=False)
            both = kind == "foreign with async client"
            async_client = (
                AsyncQdrantClient(url=server.url, check_compatibility=False) if both else None
            )
            store = QdrantStore(client, "c", async_client=async_client)
        ticks, count = await ticks_during(store.acount())
        assert count == 3
        assert ticks >= 5
        await store.aclose()
        if kind != "opened":
            client.close()
        if kind == "foreign with async client":
            await async_client.close()


async def test_event_loop_ticks_while_a_local_search_waits_for_another_call():
    store = QdrantStore.open(":memory:", "c")
    store.prepare(2)
    store.upsert([Document("a", "")], np.array([[1.0, 0.0]]))
    held, release = threading.Event(), threading.Event()

    def slow_reader():
        with store._connection._lock:
            held.set()
            release.wait(5)

    thread = threading.Thread(target=slow_reader)
    thread.start()
    held.wait(5)
    asyncio.get_running_loop().call_later(0.2, release.set)
    ticks, hits = await ticks_during(store.asearch(np.array([1.0, 0.0]), top_k=1))
    thread.join()
    assert ticks >= 5
    assert hits[0].document.id == "a"
    store.close()


def test_opened_store_works_in_one_event_loop_after_another():
    with TinyServer([COUNTED]) as server:
        store = QdrantStore.open(server.url, "c")

        async def use():
            count = await store.acount()
            await store._connection._per_loop[asyncio.get_running_loop()].close()
            return count

        assert [asyncio.run(use()), asyncio.run(use())] == [3, 3]
        store.close()


def test_stores_of_one_client_share_its_lock():
    client = QdrantClient(":memory:")
    first, second = QdrantStore(client, "a"), QdrantStore(client, "b")
    assert first._connection._lock is second._connection._lock
    client.close()


def test_errors_that_will_not_pass_are_not_transient():
    from qdrant_client.http.exceptions import ResponseHandlingException

    from e2rank_rag.store.failures import is_transient

    assert is_transient(ResponseHandlingException(httpx.ReadTimeout("")))
    assert is_transient(ResponseHandlingException(httpx.RemoteProtocolError("")))
    assert not is_transient(ResponseHandlingException(ValueError("no such field")))
    assert not is_transient(ResponseHandlingException(httpx.UnsupportedProtocol("")))
    assert not is_transient(ValueError(""))
