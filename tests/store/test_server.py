"""Servers that drip, hang, or answer in another form than Qdrant's: real sockets on this host."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time

import numpy as np
import pytest
from qdrant_client import QdrantClient

from e2rank_rag import remote
from e2rank_rag.errors import CollectionMissing, StoreError
from e2rank_rag.store import QdrantStore, connection
from e2rank_rag.store.qdrant import DEFAULT_LAYOUT
from e2rank_rag.store.server import server_client
from e2rank_rag.types import Document

DOCUMENT = Document("a", "x", {})
QUERIES = np.eye(3, dtype=np.float32)
COLLECTION = {
    "status": "green",
    "optimizer_status": "ok",
    "segments_count": 1,
    "config": {
        "params": {"vectors": {"size": 3, "distance": "Cosine"}},
        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
        "optimizer_config": {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        },
    },
    "payload_schema": {},
}
POINT = {
    "id": 1,
    "version": 0,
    "score": 0.5,
    "payload": {"id": "a", "content": "x", "meta": {}},
    "vector": [1.0, 0.0, 0.0],
}


class RawServer:
    """`answer` makes of the first line of a request the pieces that are sent, `pause_s` apart."""

    def __init__(self, answer, *, pause_s=0.0):
        self.asked = []
        self.answered = []
        self._answer, self._pause_s = answer, pause_s
        self._stop = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _accept(self):
        while not self._stop.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client:
            try:
                head, _, body = client.recv(65536).partition(b"\r\n\r\n")
                length = [
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ]
                while length and len(body) < length[0]:
                    body += client.recv(65536)
                line = head.split(b"\r\n")[0].decode()
                self.asked.append(line)
                for piece in self._answer(line):
                    client.sendall(piece)
                    if self._stop.wait(self._pause_s):
                        return
                self.answered.append(line)
            except OSError:
                pass  # a client that has gone


def reply(content, **headers):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = {"Content-Type": "application/json", "Content-Length": len(content), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + content


def result(value):
    return reply({"result": value, "status": "ok", "time": 0.0})


def one_by_one(content):
    return [content[place : place + 1] for place in range(len(content))]


COUNTED = result({"count": 3})
HEAD = COUNTED.index(b"\r\n\r\n") + 4
SLOW = {
    "dripping body": lambda line: [COUNTED[:HEAD], *one_by_one(COUNTED[HEAD:])],
    "dripping head": lambda line: one_by_one(COUNTED),
    "silent": lambda line: [b""] * 100,
}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(connection, "LONGEST_WAIT_S", 0.02)


@pytest.mark.parametrize("kind", ["opened", "client of the user"])
@pytest.mark.parametrize("slow", SLOW)
async def test_timeout_is_what_a_call_may_take(kind, slow):
    with RawServer(SLOW[slow], pause_s=0.2) as server:  # some 7 s for the body alone
        if kind == "client of the user":
            client = QdrantClient(url=server.url, timeout=0.3, check_compatibility=False)
            store = QdrantStore(client, "c")
        else:
            store = QdrantStore.open(server.url, "c", timeout=0.3)
        for call in ("sync", "async"):
            with pytest.raises(
                StoreError, match=r"did not answer in time \(0\.3 s\).*raise timeout="
            ):
                store.count() if call == "sync" else await store.acount()
            assert server.answered == []
        await store.aclose()
        if kind == "client of the user":
            client.close()


async def test_what_an_error_says_of_the_store_is_within_the_timeout():
    gone = b'{"status": {"error": "Not found: Collection `c` doesn\'t exist!"}}'
    missing = reply(gone).replace(b"200 OK", b"404 Not Found")

    def answer(line):
        time.sleep(0.25)
        return [missing] if "/collections/c" in line else one_by_one(b" " * 100)

    with RawServer(answer, pause_s=0.2) as server:
        store = QdrantStore.open(server.url, "c", timeout=0.5)
        for call in ("sync", "async"):
            with pytest.raises(CollectionMissing, match="cannot be listed"):
                store.count() if call == "sync" else await store.acount()
            assert not [line for line in server.answered if "/collections/c" not in line]
        await store.aclose()


async def test_tries_and_their_waits_are_within_the_timeout(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT_S", 0.2)
    monkeypatch.setattr(connection, "LONGEST_WAIT_S", 5.0)
    body = b'{"status": {"error": "busy"}}'
    busy = b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with RawServer(lambda line: [busy]) as server:
        store = QdrantStore.open(server.url, "c", timeout=0.5)
        for call in ("sync", "async"):
            server.asked.clear()
            with pytest.raises(StoreError, match=r"\(503\): busy"):
                store.count() if call == "sync" else await store.acount()
            assert len(server.asked) < connection.TRIES
        await store.aclose()


async def test_timeout_holds_over_grpc():
    with RawServer(SLOW["silent"], pause_s=0.2) as server:
        port = int(server.url.rpartition(":")[2])
        settings = {"url": server.url, "grpc_port": port, "prefer_grpc": True, "timeout": 0.4}
        client = server_client(settings)
        store = QdrantStore(client, "c")
        for call in ("sync", "async"):
            with pytest.raises(StoreError, match=r"did not answer in time|cannot be reached"):
                store.count() if call == "sync" else await store.acount()
            assert server.answered == []
        client.close()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e12, "3", None])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout must be > 0"):
        QdrantStore.open("http://localhost:6333", "c", timeout=timeout)


# Answers of another form

CALLS = {
    "count": lambda store: store.count(),
    "search": lambda store: store.search_batch(QUERIES, top_k=2),
    "get": lambda store: store.get(["a"]),
    "rescore": lambda store: store.rescore(QUERIES[0], ["a"]),
    "ids": lambda store: list(store.ids()),
    "upsert": lambda store: store.upsert([DOCUMENT], QUERIES[:1]),
    "delete": lambda store: store.delete(["a"]),
}
ASYNC_CALLS = {
    "count": lambda store: store.acount(),
    "search": lambda store: store.asearch_batch(QUERIES, top_k=2),
    "get": lambda store: store.aget(["a"]),
    "rescore": lambda store: store.arescore(QUERIES[0], ["a"]),
}
FORMS = {
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "number": b"3",
    "nothing": b"",
    "page": b"<html>welcome</html>",
    "cut": COUNTED[HEAD:-5],
    "deep": b"[" * 100_000,
    "bytes": b"\xff\xfe",
    "empty": b"{}",
    "null result": b'{"result": null}',
    "text result": b'{"result": "x"}',
    "list of nulls": b'{"result": [null]}',
    "points of text": b'{"result": {"points": ["x"]}}',
    "points null": b'{"result": {"points": null}}',
}


def answering(content):
    """The collection as it should be, and `content` to all else."""
    known = "GET /collections/c "
    return lambda line: [result(COLLECTION) if line.startswith(known) else content]


@pytest.mark.parametrize("form", FORMS)
async def test_an_answer_of_another_form_is_an_error_that_says_so(form):
    with RawServer(answering(reply(FORMS[form]))) as server:
        store = QdrantStore.open(server.url, "c")
        assert store.dim == 3
        for call in CALLS.values():
            with pytest.raises(StoreError, match=r"not of Qdrant's form|cannot be read"):
                call(store)
        for asynchronous in ASYNC_CALLS.values():
            with pytest.raises(StoreError, match=r"not of Qdrant's form|cannot be read"):
                await asynchronous(store)
        await store.aclose()


@pytest.mark.parametrize("form", FORMS)
def test_a_collection_of_another_form_is_an_error_that_says_so(form):
    with RawServer(lambda line: [reply(FORMS[form])]) as server:
        store = QdrantStore.open(server.url, "c")
        for asked in ("exists", "dim", "fingerprint", "model"):
            with pytest.raises(StoreError, match=r"not of Qdrant's form|cannot be read"):
                getattr(store, asked)
        with pytest.raises(StoreError, match=r"not of Qdrant's form|cannot be read"):
            store.prepare(3)
        store.close()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"points": [POINT]}] * 2, "2 rankings for 3 queries"),
        ([{"points": [POINT]}] * 4, "4 rankings for 3 queries"),
        ([], "0 rankings for 3 queries"),
        ([{"points": [POINT] * 3}] * 3, "3 points where 2 were asked for"),
        ([{"points": [POINT | {"vector": ["x", "y", "z"]}]}] * 3, "a list of numbers"),
        ([{"points": [POINT | {"score": None}]}] * 3, "score"),
        ([{"points": [{k: v for k, v in POINT.items() if k != "score"}]}] * 3, "score"),
        ([{"points": [POINT | {"payload": {"id": 3, "content": "x"}}]}] * 3, "no document id"),
    ],
)
async def test_an_answer_is_checked_before_it_is_used(value, said):
    with RawServer(answering(result(value))) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=said):
            CALLS["search"](store)
        with pytest.raises(StoreError, match=said):
            await ASYNC_CALLS["search"](store)
        await store.aclose()


OTHER_POINT = POINT | {"id": "7c1e6d5e-0f0e-4b0c-8a53-7f3b8a6f2b11"}
MINE = POINT | {"id": DEFAULT_LAYOUT.point_id("a")}


@pytest.mark.parametrize(
    ("call", "value", "said"),
    [
        ("search", [{"points": [POINT, POINT]}] * 3, "one point is there twice"),
        ("get", [OTHER_POINT], "not requested"),
        ("get", [MINE, MINE], "one point is there twice"),
        ("rescore", {"points": [OTHER_POINT]}, "not requested"),
        ("count", {"count": -1}, "a count of -1"),
        ("delete", {"operation_id": 1, "status": "wait_timeout"}, "is wait_timeout, not completed"),
    ],
)
def test_an_answer_to_another_question_is_an_error(call, value, said):
    with RawServer(answering(result(value))) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=said):
            CALLS[call](store)
        store.close()


@pytest.mark.parametrize(
    ("call", "asked", "value", "said"),
    [
        ("upsert", "POST /collections/c/points ", [MINE], "vector that was not requested"),
        ("update_meta", "POST /collections/c/points/batch", [], "0 results of 1 operations"),
        ("record", "PATCH /collections/c ", False, "False, expected True"),
    ],
)
def test_an_answer_to_a_write_is_checked_before_it_is_used(call, asked, value, said):
    bare = MINE | {"vector": None}
    answers = {
        "GET /collections/c ": result(COLLECTION),
        "POST /collections/c/points ": result([bare]),
        "GET /collections/c/exists": result({"exists": True}),
        "POST /collections/c/points/count": result({"count": 0}),
        asked: result(value),
    }

    def answer(line):
        return [next(content for begin, content in answers.items() if line.startswith(begin))]

    calls = {
        "upsert": CALLS["upsert"],
        "update_meta": lambda store: store.update_meta([DOCUMENT]),
        "record": lambda store: store.prepare(3, fingerprint="f"),
    }
    with RawServer(answer) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=said):
            calls[call](store)
        store.close()


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"null",
        b'{"status": null}',
        b'{"status": {"error": ["x"]}}',
        b'{"status": {"error": "%s"}}' % (b"long " * 10_000),
        b"%s" % (b"long " * 10_000),
    ],
)
def test_a_refusal_of_any_form_is_said_in_a_few_words(content):
    with RawServer(lambda line: [reply(content).replace(b"200 OK", b"400 Bad Request")]) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=r"refused \(400\): ") as caught:
            store.count()
        assert len(str(caught.value)) < 700
        store.close()


@pytest.mark.parametrize("points", [[], [{"id": 1, "payload": {"id": "a"}}]])
def test_pages_that_never_end_are_an_error(points):
    page = result({"points": points, "next_page_offset": 7})
    with RawServer(answering(page)) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match="the same page follows"):
            CALLS["ids"](store)
        store.close()


async def test_a_reply_is_read_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_REPLY_BYTES", 1_000_000)
    large = reply(b" " * 8_000_000)
    with RawServer(answering(large)) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match=r"longer than 1,000,000 bytes.*fewer documents"):
            store.count()
        with pytest.raises(StoreError, match="longer than 1,000,000 bytes"):
            await store.acount()
        assert len(server.asked) == 2
        await store.aclose()


async def test_a_reply_that_would_unpack_is_refused():
    packed = reply(gzip.compress(b" " * 1_000_000), **{"Content-Encoding": "gzip"})
    with RawServer(answering(packed)) as server:
        store = QdrantStore.open(server.url, "c")
        with pytest.raises(StoreError, match="encoded as 'gzip', which was not asked for"):
            store.count()
        with pytest.raises(StoreError, match="encoded as 'gzip'"):
            await store.acount()
        await store.aclose()


def test_the_limits_are_no_settings():
    given = {"url": "http://localhost:6333", "grpc_options": {"grpc.keepalive_time_ms": 1}}
    client = server_client(given)
    assert client.init_options["grpc_options"] == given["grpc_options"]
    assert "event_hooks" not in client.init_options
    again = server_client(client.init_options)
    assert again.init_options == client.init_options
    client.close()
    again.close()
