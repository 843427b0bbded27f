"""A client of one server with OpenAI's chat completions interface: requests, retries, errors.

The `openai` package is not used, because its client (3.52, measured) has no deadline for a whole
call, so that a reply which comes byte by byte never times out; it sets no limit on a reply's size,
follows redirects (63 requests for one call), and returns HTML, `null` and completions without a
choice as results. It also takes a second to import. With our httpx client inside it and retries
off, only the request's JSON would be left to it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import BaseModel, Field, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random,
)

from e2rank_rag.remote import UnreadableReply, asked_wait_s, async_reply_limits, check_timeout
from e2rank_rag.training.labels.teacher import TeacherError

TRIES = 6
FIRST_WAIT_S = 1.0
LONGEST_BACKOFF_S = 30.0
CONNECT_S = 10.0
SHOWN_CHARACTERS = 300

BUSY_STATUS = (408, 429)
"""Another try may succeed. So it is for 500 and above."""

REFUSED_REQUEST_STATUS = (400, 408, 413, 422)
"""So it is for 500 and above: this request is refused, such as a long one, not every request."""

HINTS = {
    401: "; key_env names the environment variable that holds the key",
    403: "; key_env names the environment variable that holds the key",
    404: "; are the address and the model's name right? Most addresses end in /v1",
}


class Refused(Exception):
    """One request has no answer; others may have one. See `Judgement` for problem and said."""

    def __init__(self, problem: str, said: str) -> None:
        super().__init__(problem)
        self.problem, self.said = problem, said


class Usage(BaseModel):
    """Tokens that the endpoint counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Message(BaseModel):
    """What the model wrote."""

    content: str | None = None


class Choice(BaseModel):
    """One reply, and why it ended."""

    message: Message
    finish_reason: str | None = None


class Completion(BaseModel):
    """The part of an answer that is used."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


class ChatEndpoint:
    """`completion = await ChatEndpoint("http://localhost:8000/v1").complete({"model": ...})`

    key_env: name of the environment variable that holds the API key; None sends no key.
    timeout_s: seconds for one answer, from connecting to its last byte, with all tries and the
        waits between them. A server that asks to wait longer raises TeacherError.
    """

    def __init__(
        self, address: str, *, key_env: str | None = None, timeout_s: float = 300.0
    ) -> None:
        check_timeout(timeout_s, name="timeout_s")
        self._timeout_s = timeout_s
        self._url = _completions_url(address)
        self._key = None if key_env is None else _key_of(key_env)
        self._client = httpx.AsyncClient(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
            # The caller limits them; waiting for a free one would count against the timeout.
            limits=httpx.Limits(max_connections=None),
            event_hooks=async_reply_limits(),
        )

    async def complete(self, content: Mapping[str, Any]) -> Completion:
        """The answer to one request; a busy server is asked again, up to `TRIES` times.

        Raises:
            Refused: this request has no answer.
            TeacherError: other requests would have none either.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(TRIES) | stop_before_delay(self._timeout_s),
            wait=_wait_s,
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                response: httpx.Response = await retrying(self._post, content)
        except TimeoutError as error:
            raise Refused("no answer in time", f"none within {self._timeout_s:g} s") from error
        except UnreadableReply as error:
            raise Refused("answer that is not read", str(error)) from error
        except httpx.HTTPStatusError as error:
            raise self._explained_status(error.response) from error
        except httpx.HTTPError as error:
            raise self._explained(error) from error
        try:
            return Completion.model_validate_json(response.content)
        except ValidationError as error:
            said = self.presentable(response.text)
            raise Refused("answer is no chat completion", said) from error

    def presentable(self, text: str) -> str:
        """The beginning of a server's text, on one line and without the key."""
        hidden = text if self._key is None else text.replace(self._key, "***")
        return " ".join(hidden.split())[:SHOWN_CHARACTERS]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(self, content: Mapping[str, Any]) -> httpx.Response:
        response = await self._client.post(self._url, json=content)
        return response.raise_for_status()

    def _explained(self, error: httpx.HTTPError) -> Exception:
        kind = self.presentable(f"{type(error).__name__}: {error}")
        where = f"the teacher at {self._place}"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return TeacherError(
                f"{where} cannot be reached ({kind}): is the server running, and is the address "
                "right?"
            )
        if isinstance(error, httpx.TimeoutException):
            return Refused("no answer in time", kind)
        if _is_transient(error):
            return Refused("connection broken off", kind)
        return TeacherError(f"{where} cannot be asked ({kind})")

    def _explained_status(self, response: httpx.Response) -> Exception:
        status = response.status_code
        said = self.presentable(response.text)
        wait_s = _asked_wait_s(response)
        if status in REFUSED_REQUEST_STATUS or (status >= 500 and wait_s <= self._timeout_s):
            return Refused(f"refused with status {status}", said)
        asked = f"; it asks to wait {wait_s:,.0f} s" if wait_s else ""
        return TeacherError(
            f"the teacher at {self._place} refused with status {status}: {said}"
            f"{HINTS.get(status, '')}{asked}"
        )

    @property
    def _place(self) -> httpx.URL:
        return self._url.copy_with(query=None)


def _asked_wait_s(response: httpx.Response) -> float:
    return asked_wait_s(response.headers.get("Retry-After"))


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return status in BUSY_STATUS or status >= 500
    return isinstance(
        error, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError
    )


def _wait_s(state: RetryCallState) -> float:
    backoff = wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_BACKOFF_S)
    seconds = (backoff + wait_random(0, FIRST_WAIT_S))(state)
    error = state.outcome.exception() if state.outcome is not None else None
    asked = _asked_wait_s(error.response) if isinstance(error, httpx.HTTPStatusError) else 0.0
    return max(seconds, asked)


def _completions_url(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ValueError(f"the teacher's address cannot be read: {error}") from error
    if url.userinfo:
        raise ValueError(
            f"the teacher's address at {url.host} holds a password; put the key into an "
            "environment variable and name that with key_env"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"{address!r} is no address of a teacher; write one like http://localhost:8000/v1"
        )
    path = url.path.rstrip("/").removesuffix("/chat/completions")
    return url.copy_with(path=f"{path}/chat/completions")


def _key_of(name: str) -> str:
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"the environment variable {name} holds no key; set it, or name another")
    if not key.isascii() or not key.isprintable():
        # The client's own error would show the key.
        raise ValueError(f"the key in the environment variable {name} holds more than plain ASCII")
    return key
