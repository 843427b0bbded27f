"""One thread per loaded model.

Tokenising and the forward pass of a model happen in its one thread: shared fast tokenizers truncate
wrongly across threads without saying so, and eight callers with two torch threads each would fight
over the processor. Sync calls wait, async calls are awaited, a cancelled call leaves the queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

CLOSED = "this model was closed; open it again with from_pretrained"


class Cancelled(Exception):
    """Raised inside a running job whose caller has gone; nobody is left to see it."""


class Worker:
    """A queue with one thread. `run` waits for its turn, `run_async` awaits it."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._here = threading.local()
        self._closed = False

    def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, computed in the worker thread. A call from there runs at once."""
        if self._inside:
            return call()
        gone = threading.Event()
        future = self._submit(call, gone)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError(CLOSED) from None
        except BaseException:
            # Ctrl-C reaches the waiting thread only: take the job from the queue, or stop it.
            gone.set()
            future.cancel()
            raise

    async def run_async(self, call: Callable[[], T]) -> T:
        """The same without blocking the event loop. A cancelled task leaves the queue."""
        if self._inside:
            return call()
        gone = threading.Event()
        future = self._submit(call, gone)
        try:
            return await asyncio.wrap_future(future)
        except BaseException:
            gone.set()
            task = asyncio.current_task()
            if future.cancelled() and not (task and task.cancelling()):
                # The worker was closed; to pass that on as it comes would end the caller's task.
                raise RuntimeError(CLOSED) from None
            raise

    def check_cancelled(self) -> None:
        """For long jobs, between two steps: stop when nobody waits for the answer any more."""
        gone: threading.Event | None = getattr(self._here, "gone", None)
        if gone is not None and gone.is_set():
            raise Cancelled

    def close(self) -> None:
        """Finish what is running, drop what is queued. Safe to call twice, and from the worker."""
        self._closed = True
        self._executor.shutdown(wait=not self._inside, cancel_futures=True)

    @property
    def _inside(self) -> bool:
        return getattr(self._here, "gone", None) is not None

    def _submit(self, call: Callable[[], T], gone: threading.Event) -> Future[T]:
        if self._closed:
            raise RuntimeError(CLOSED)

        def job() -> T:
            self._here.gone = gone
            try:
                return call()
            finally:
                self._here.gone = None

        return self._executor.submit(job)
