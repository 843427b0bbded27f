"""One side of a comparison in a process of its own.

Two libraries that compute with torch in one process have two teams of threads, which slow each
other down. So each side is a process: it builds its models once, and then answers requests, which
are JSON lines. Its standard error goes to a file, whose end is shown if the process fails.

    python -m e2rank_rag.bench.sides e2rank_rag.bench.encode:ours '{"model": "minilm"}'
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from e2rank_rag.bench.pairs import Timed, timed

Answer = Callable[..., Any]
"""What a side does with a request: its keys are the arguments. The result is JSON-able."""

Build = Callable[..., tuple[dict[str, Any], Answer]]
"""Opens a side: what it is (threads, dtype, ...; JSON-able), and how it answers."""

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Missing(Exception):
    """A side needs a package that is not installed."""


class Side(Protocol):
    """One side of a comparison. about: what it is, as its builder says."""

    about: dict[str, Any]

    def __call__(self, **request: Any) -> Timed:
        """Answer one request, timed where it is computed."""

    def close(self) -> None:
        """End it."""


class Start(Protocol):
    """Starts a side. build: its builder as "module:function". Raises Missing."""

    def __call__(
        self, build: str, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> Side: ...


class ProcessSide:
    """A `Side` in a process of its own; see the module.

    environment: variables that its process has beside those of this one.
    """

    def __init__(
        self, build: str, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self._build = build
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, build, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **QUIET, **environment},
        )
        try:
            self.about: dict[str, Any] = self._read()["about"]
        except BaseException:
            self.close()
            raise

    def __call__(self, **request: Any) -> Timed:
        """Answer one request. Raises RuntimeError if the process fails."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is read below
        return Timed(*self._read()["timed"])

    def close(self) -> None:
        """End the process. Safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(
                f"{self._build} ended with code {self._process.returncode}: {self._tail()}"
            )
        reply: dict[str, Any] = json.loads(line)
        if "missing" in reply:
            raise Missing(reply["missing"])
        if "error" in reply:
            raise RuntimeError(f"{self._build}: {reply['error']}")
        return reply

    def _tail(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").splitlines()
        return " / ".join(lines[-3:]) or "it printed nothing"


class Sides:
    """The sides of one part, closed together.

    missing: by name, why a side did not start.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._open = ExitStack()
        self.started: dict[str, Side] = {}
        self.missing: dict[str, str] = {}

    def add(
        self,
        name: str,
        build: str,
        options: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> Side | None:
        """Start a side under this name; None, and an entry in `missing`, if a package lacks."""
        try:
            side = self._start(build, options, environment or {})
        except Missing as error:
            self.missing[name] = str(error)
            return None
        self._open.callback(side.close)
        self.started[name] = side
        return side

    def about(self) -> dict[str, dict[str, Any]]:
        """What each side is, by name."""
        return {name: side.about for name, side in self.started.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def builder(name: str) -> Build:
    """The builder that "module:function" names, in this package's `bench`."""
    module, _, function = name.partition(":")
    if not module.startswith("e2rank_rag.bench."):
        raise ValueError(f"{name!r} is no builder of e2rank_rag.bench")
    found: Build = getattr(importlib.import_module(module), function)
    return found


@contextmanager
def _own_output() -> Iterator[Any]:
    """What was standard output, for replies; libraries that print do so on standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with replies:
        yield replies


def serve(build: str, options: str) -> None:
    """The process of a side: reads requests until its input ends."""
    with _own_output() as replies:

        def reply(**content: Any) -> None:
            replies.write(json.dumps(content) + "\n")
            replies.flush()

        try:
            about, answer = builder(build)(**json.loads(options))
            reply(about=about)
            for line in sys.stdin:
                request = json.loads(line)
                reply(timed=timed(lambda request=request: answer(**request)))  # type: ignore[misc]
        except ImportError as error:
            reply(missing=str(error))
        except Exception as error:
            traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}, line {where.lineno}"
            reply(error=f"{type(error).__name__}: {error} ({place})")


if __name__ == "__main__":
    serve(*sys.argv[1:])
