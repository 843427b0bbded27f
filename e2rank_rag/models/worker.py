"""One thread per device, for all models on it.

Tokenising and the forward pass of a model happen in that thread: shared fast tokenizers truncate
wrongly across threads without saying so, and eight callers with two torch threads each would fight
over the processor. Sync calls wait, async calls are awaited, a cancelled call leaves the queue.

All models of a device share it because a thread that has computed with torch keeps a team of OpenMP
threads. Beside a second team, in a process with as many of them as cores, libgomp puts them to
sleep between any two operations, and a short text takes 1.4 times as long (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any

from e2rank_rag.locks import ForkAware, Lock
from e2rank_rag.types import T

CLOSED = "this model was closed; open it again with from_pretrained"


class Cancelled(Exception):
    """Raised inside a running job whose caller has gone; nobody is left to see it."""


class DeviceThread:
    """A thread with a queue. gone: of the job that runs, in the thread itself; see `Worker`."""

    def __init__(self, device: str) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"e2rank-{device}")
        self.here = threading.local()


_threads: dict[str, DeviceThread] = {}
if hasattr(os, "register_at_fork"):  # not on Windows
    # A child process has none of its parent's threads, but may go on with the parent's models.
    os.register_at_fork(after_in_child=_threads.clear)


def thread_of(device: str) -> DeviceThread:
    """The thread of a device; it starts with its first job."""
    return _threads.get(device) or _threads.setdefault(device, DeviceThread(device))


def in_passing_thread(call: Callable[[], T]) -> T:
    """The result of `call`, computed in a thread that ends with it, and its OpenMP threads too."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="e2rank-open") as passing:
        return passing.submit(call).result()


class Worker(ForkAware):
    """A model's calls in the thread of its device. `run` waits for its turn, `run_async` awaits it.

    device: "cpu", "cuda:0", ...
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._jobs: set[Future[Any]] = set()
        self._lock = Lock()
        self._closed = False
        super().__init__()

    def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, computed in that thread. A call from there runs at once."""
        if self._gone is not None:
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
        if self._gone is not None:
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
        gone = self._gone
        if gone is not None and gone.is_set():
            raise Cancelled

    def close(self) -> None:
        """Finish what is running, drop what is queued. Safe to call twice, and from the thread."""
        with self._lock:
            self._closed = True
            jobs = self._jobs.copy()
        running = [job for job in jobs if not job.cancel()]
        if self._gone is None:
            wait(running)

    def after_fork(self) -> None:
        # They run, or wait, in the parent only.
        self._jobs = set()

    @property
    def _gone(self) -> threading.Event | None:
        """In the thread: set when the caller of its job has gone. None in any other."""
        return getattr(thread_of(self._device).here, "gone", None)

    def _submit(self, call: Callable[[], T], gone: threading.Event) -> Future[T]:
        thread = thread_of(self._device)

        def job() -> T:
            thread.here.gone = gone
            try:
                return call()
            finally:
                thread.here.gone = None

        with self._lock:
            if self._closed:
                raise RuntimeError(CLOSED)
            future = thread.executor.submit(job)
            self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return future
