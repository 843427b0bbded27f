"""Retries, waits and refusals of a chat server, held against a real one on this machine."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import aclosing

import pytest

from e2rank_rag import remote
from e2rank_rag.training.labels import endpoint
from e2rank_rag.training.labels.endpoint import ChatEndpoint, Refused
from e2rank_rag.training.labels.teacher import TeacherError
from tests.chat_server import ChatServer, said

CONTENT = {
    "model": "m",
    "messages": [{"role": "user", "content": "[1] 1\nQuery: q"}],
}
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_BACKOFF_S", 0.02)


async def complete(url, **options):
    async with aclosing(ChatEndpoint(url, **options)) as chat:
        return await chat.complete(CONTENT)


def failing(status, times, **headers):
    """So many refusals, then an answer."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(asked):
        return (status, {"error": "sorry"}, headers) if asked.number <= times else said("yes")

    return answer


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
async def test_a_busy_server_is_asked_again(status):
    with ChatServer(failing(status, 2)) as server:
        completion = await complete(server.url)
    assert completion.choices[0].message.content == "yes"
    assert [asked.body for asked in server.asked] == [CONTENT] * 3
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions"}


@pytest.mark.parametrize("status", [429, 503])
async def test_the_wait_that_a_server_asks_for_is_kept(status, monkeypatch):
    waits, sleep = [], asyncio.sleep

    async def asleep(seconds):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("asyncio.sleep", asleep)
    with ChatServer(failing(status, 1, Retry_After="0.3")) as server:
        await complete(server.url)
    assert max(waits) >= 0.3


@pytest.mark.parametrize("status", [429, 503])
async def test_a_longer_wait_than_is_sensible_ends_it_and_is_said(status):
    with (
        ChatServer(failing(status, 1, Retry_After="3600")) as server,
        pytest.raises(TeacherError, match=rf"status {status}: .*sorry.*asks to wait 3,600 s"),
    ):
        await complete(server.url)
    assert len(server.asked) == 1


async def test_a_server_error_that_stays_concerns_the_one_request():
    with (
        ChatServer(failing(500, 99)) as server,
        pytest.raises(Refused, match="refused with status 500") as caught,
    ):
        await complete(server.url)
    assert len(server.asked) == endpoint.TRIES
    assert "sorry" in caught.value.said


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_is_not_sent_again(status):
    with (
        ChatServer(failing(status, 99)) as server,
        pytest.raises(Refused, match=f"refused with status {status}"),
    ):
        await complete(server.url)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "key_env names"), (403, "key_env names"), (404, "the model's name right"), (307, "")],
)
async def test_what_concerns_all_requests_ends_it_at_once(status, hint):
    with (
        ChatServer(failing(status, 99)) as server,
        pytest.raises(TeacherError, match=rf"refused with status {status}: .*{hint}"),
    ):
        await complete(server.url)
    assert len(server.asked) == 1


async def test_a_spent_quota_ends_it_after_all_tries():
    with (
        ChatServer(failing(429, 99)) as server,
        pytest.raises(TeacherError, match=r"refused with status 429: .*sorry"),
    ):
        await complete(server.url)
    assert len(server.asked) == endpoint.TRIES


async def test_a_server_that_is_not_there_is_named():
    with ChatServer() as server:
        url = server.url
    with pytest.raises(TeacherError, match=rf"the teacher at {url}/chat/completions cannot be r"):
        await complete(url)


async def test_an_answer_that_never_comes_is_given_up_by_its_timeout():
    released = threading.Event()

    def never(asked):
        assert released.wait(60.0)
        return said("too late")

    with ChatServer(never) as server:
        with pytest.raises(Refused, match="no answer in time"):
            await complete(server.url, timeout_s=0.2)
        released.set()
    assert len(server.asked) <= 1


async def test_an_answer_that_comes_byte_by_byte_is_given_up_by_its_timeout():
    with (
        ChatServer(dripping=0.05) as server,
        pytest.raises(Refused, match="no answer in time"),
    ):
        await complete(server.url, timeout_s=0.2)
    assert len(server.asked) <= 1


async def test_a_try_that_does_not_fit_into_the_timeout_is_not_made():
    with (
        ChatServer(failing(503, 99, Retry_After="0.4")) as server,
        pytest.raises(Refused, match=r"no answer in time|status 503"),
    ):
        await complete(server.url, timeout_s=0.5)
    assert len(server.asked) <= 2


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout_s):
    with pytest.raises(ValueError, match="timeout_s must be > 0"):
        ChatEndpoint("http://localhost:8000/v1", timeout_s=timeout_s)


async def test_an_answer_is_read_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_REPLY_BYTES", 100_000)
    with (
        ChatServer(lambda asked: (200, b" " * 1_000_000, {})) as server,
        pytest.raises(Refused, match="answer that is not read") as caught,
    ):
        await complete(server.url)
    assert "longer than 100,000 bytes" in caught.value.said
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"null",
        b"[]",
        b"[" * 100_000,
        {"error": "overloaded"},
        {"choices": None},
        {"choices": []},
        {"choices": [{}]},
        {"choices": ["x"]},
        {"choices": [{"message": {"content": ["x"]}}]},
    ],
)
async def test_an_answer_of_another_form_is_refused_and_shown(body):
    with (
        ChatServer(lambda asked: (200, body, {})) as server,
        pytest.raises(Refused, match="answer is no chat completion") as caught,
    ):
        await complete(server.url)
    assert caught.value.said


async def test_an_answer_may_lack_its_text_and_its_tokens():
    with ChatServer(lambda asked: said(None, usage=None)) as server:
        completion = await complete(server.url)
    assert (completion.choices[0].message.content, completion.usage) == (None, None)


@pytest.mark.parametrize(
    ("end", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("?api-version=3", "/v1/chat/completions?api-version=3"),
    ],
)
async def test_an_address_may_end_in_several_ways(end, path):
    with ChatServer() as server:
        await complete(server.url + end)
    assert server.asked[0].path == path


@pytest.mark.parametrize(
    "address", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="address"):
        ChatEndpoint(address)


def test_a_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="holds a password") as caught:
        ChatEndpoint(f"https://me:{KEY}@host/v1")
    assert KEY not in str(caught.value)


# The key


async def test_the_key_is_taken_from_the_environment_and_sent(monkeypatch):
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    with ChatServer() as server:
        await complete(server.url, key_env="SOME_KEY")
        await complete(server.url)
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in server.asked[1].headers


async def test_the_key_is_in_no_error_and_no_log(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", KEY)
    echo = {"error": f"{'x' * 270} {KEY} is no key of ours"}
    with (
        ChatServer(lambda asked: (401, echo, {})) as server,
        pytest.raises(TeacherError, match=r"x{270} \*\*\*") as caught,
    ):
        await complete(server.url, key_env="SOME_KEY")
    assert KEY[:8] not in str(caught.value)
    assert caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", [None, "", " "])
def test_a_missing_key_is_named_by_its_variable(monkeypatch, key):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ValueError, match="environment variable SOME_KEY holds no key"):
        ChatEndpoint("http://host/v1", key_env="SOME_KEY")


@pytest.mark.parametrize("key", [KEY + "\nX-Other: 1", KEY + "…"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ValueError, match="SOME_KEY holds more than plain ASCII") as caught:
        ChatEndpoint("http://host/v1", key_env="SOME_KEY")
    assert KEY not in str(caught.value)
