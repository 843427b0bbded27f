"""One thread per device, in which the models of that device compute.

Tokenising and the forward pass of a model run in the thread of its device. Fast tokenizers that
several threads share truncate wrongly without an error, and eight callers with two torch threads
each would compete for the processor. Synchronous calls wait, asynchronous calls are awaited, and a
cancelled call leaves the queue.

All models of a device share one thread, because a thread that has computed with torch keeps a team
of OpenMP threads. With a second team there are more threads than cores, and libgomp puts them to
sleep between any two operations: a short text takes 1.4 times as long (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from e2rank_rag.locks import ForkAware, Lock
from e2rank_rag.threads import usable_threads
from e2rank_rag.types import T

A = TypeVar("A")

CLOSED = "this model was closed; open it again with from_pretrained"


class Cancelled(Exception):
    """Raised inside a running job whose caller was cancelled or interrupted."""


class DeviceThread:
    """A thread with a queue. `here.gone` is the running job's event, see `Worker._gone`.

    threads: how many threads torch uses here, unless a model says otherwise; known in the thread.
    """

    def __init__(self, device: str) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"e2rank-{device}")
        self.here = threading.local()

    @cached_property
    def threads(self) -> int:
        return min(torch.get_num_threads(), usable_threads())


_threads: dict[str, DeviceThread] = {}
if hasattr(os, "register_at_fork"):  # not on Windows
    # A child process has none of its parent's threads, but may go on with the parent's models.
    os.register_at_fork(after_in_child=_threads.clear)


def thread_of(device: str) -> DeviceThread:
    """The thread of a device; it starts with its first job."""
    return _threads.get(device) or _threads.setdefault(device, DeviceThread(device))


def set_threads(threads: int) -> None:
    """Let torch compute with this number of threads, in the calling thread."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def side_by_side(
    compute: Callable[[A], T], batches: Iterable[A], threads: int
) -> Iterator[tuple[A, T]]:
    """Each batch with its result, in order; every batch is computed by one of `threads` threads.

    A team of threads waits at the end of every operation for its slowest member. Beside another
    busy process that is most of the time, and batches of their own threads never wait.
    """
    pool = ThreadPoolExecutor(
        threads, thread_name_prefix="e2rank-batch", initializer=torch.set_num_threads, initargs=(1,)
    )
    running: deque[tuple[A, Future[T]]] = deque()
    try:
        for batch in batches:
            running.append((batch, pool.submit(compute, batch)))
            if len(running) > 2 * threads:
                first, future = running.popleft()
                yield first, future.result()
        for first, future in running:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        # Parts of torch have one number for all threads, which the pool has set to 1.
        torch.set_num_threads(threads)


def keeps_state(model: nn.Module) -> bool:
    """Whether a forward pass changes the model: rotary positions that depend on the length."""
    kinds = {getattr(module, "rope_type", "default") for module in model.modules()}
    return bool(kinds & {"dynamic", "longrope"})


def in_passing_thread(call: Callable[[], T]) -> T:
    """The result of `call`, computed in a thread that then ends with its OpenMP threads."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="e2rank-open") as passing:
        return passing.submit(call).result()


class Worker(ForkAware):
    """A model's calls in the thread of its device. `run` waits for its turn, `run_async` awaits it.

    device: "cpu", "cuda:0", ... threads: see `OpenOptions`.
    """

    def __init__(self, device: str, threads: int | None = None) -> None:
        self._device = device
        self._threads = threads
        self._jobs: set[Future[Any]] = set()
        self._lock = Lock()
        self._closed = False
        super().__init__()

    def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, computed in the device's thread; in that thread it runs at once."""
        if self._gone is not None:
            return call()
        gone = threading.Event()
        future = self._submit(call, gone)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError(CLOSED) from None
        except BaseException:
            # Ctrl-C reaches only the waiting thread: take the job from the queue, or stop it.
            gone.set()
            future.cancel()
            raise

    async def run_async(self, call: Callable[[], T]) -> T:
        """`run` without blocking the event loop. A cancelled task leaves the queue."""
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
                # The worker was closed; passing the cancellation on would cancel the caller's task.
                raise RuntimeError(CLOSED) from None
            raise

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if the caller of the running job has given up; for long jobs."""
        gone = self._gone
        if gone is not None and gone.is_set():
            raise Cancelled

    def close(self) -> None:
        """Finish the running job, drop the queued ones. Safe to call twice, and in the thread."""
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
        """The running job's event, which is set when its caller gives up; None in other threads."""
        return getattr(thread_of(self._device).here, "gone", None)

    def _submit(self, call: Callable[[], T], gone: threading.Event) -> Future[T]:
        thread = thread_of(self._device)

        def job() -> T:
            thread.here.gone = gone
            set_threads(self._threads or thread.threads)
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
