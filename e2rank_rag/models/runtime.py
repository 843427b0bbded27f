"""Models in memory: one copy of the weights for all users, and one thread per device.

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
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, TypeVar, get_args

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.locks import ForkAware, Lock, opening
from e2rank_rag.models.cpu import has_bfloat16, use_onednn
from e2rank_rag.models.folders import FoundModel, find_model
from e2rank_rag.threads import usable_threads
from e2rank_rag.types import T

A = TypeVar("A")

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class OpenOptions(TypedDict, total=False):
    """The options of every `from_pretrained`.

    dtype: float32 on a CPU and bfloat16 on CUDA by default. "auto" takes bfloat16 on a CPU too, if
        it computes in it (see `cpu.has_bfloat16`).
    device: "cpu", "cuda", "cuda:1", ...; by default CUDA if there is one.
    attn_implementation: "sdpa" or "eager"; by default what transformers takes.
    revision: of a hub id: a branch, tag or commit.
    local_files_only: whether a hub id is read from the cache of this machine only.
    threads: how many threads compute on the CPU, at least 1; by default torch's number, but no more
        than the process may use, see `threads.usable_threads`.
    """

    dtype: Dtype | None
    device: str | None
    attn_implementation: str | None
    revision: str | None
    local_files_only: bool
    threads: int | None


def found_model(model: str | Path, options: OpenOptions) -> FoundModel:
    """The model for these options; TypeError for an unknown option."""
    for name in options:
        if name not in OpenOptions.__annotations__:
            known = list(OpenOptions.__annotations__)
            raise TypeError(f"from_pretrained has no option {name!r}; models have {known}")
    local_files_only = options.get("local_files_only", False)
    return find_model(model, revision=options.get("revision"), local_files_only=local_files_only)


BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Most tokens in one forward pass, padding included. A longer text is a batch of its own."""


def batch_tokens(device: torch.device) -> int:
    """`BATCH_TOKENS` for this device."""
    return BATCH_TOKENS["cpu" if device.type == "cpu" else "cuda"]


def torch_device(device: str | None) -> torch.device:
    """A device by its name, with its number for CUDA; None: CUDA if there is one, else the CPU."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda" and where.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if where.type == "cpu" else where


def torch_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """A dtype by its name; None: bfloat16 on CUDA, float32 elsewhere. "auto": see `OpenOptions`."""
    if dtype is not None and dtype not in get_args(Dtype):
        raise ValueError(f"dtype must be one of {list(get_args(Dtype))}, got {dtype!r}")
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype == "auto":
        able = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bfloat16()
        found = torch.bfloat16 if able else torch.float32
        logger.info('dtype "auto" on this %s is %s', device.type, found)
        return found
    named: torch.dtype = getattr(torch, dtype)
    return named


def check_threads(threads: int | None) -> None:
    """ValueError for a number of threads that nothing computes with."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}; None takes what there is")


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


@dataclass(frozen=True)
class LoadKey:
    """Requests with equal keys share one model in memory; lengths and prompts are not part of it.

    stamp: sizes and times of the weight files, so that a folder that training has overwritten is
        another model.
    adapter: folder of the listwise adapter, if the model has one.
    system: the system that reads the weights, see `recipe.System`; for a cross-encoder with its
        structure.
    threads: see `OpenOptions`.
    """

    folder: Path
    stamp: tuple[tuple[str, int, int], ...]
    dtype: torch.dtype
    device: torch.device
    attn_implementation: str | None
    adapter: Path | None = None
    system: str = "e2rank"
    threads: int | None = None

    @classmethod
    def of(
        cls,
        folder: Path,
        options: OpenOptions,
        *,
        adapter: Path | None = None,
        system: str = "e2rank",
    ) -> Self:
        """The key of the weights in this folder, opened with these options."""
        device = torch_device(options.get("device"))
        dtype = torch_dtype(options.get("dtype"), device)
        attention, threads = options.get("attn_implementation"), options.get("threads")
        check_threads(threads)
        return cls(
            folder, stamp(folder, adapter), dtype, device, attention, adapter, system, threads
        )


def placed(model: PreTrainedModel, key: LoadKey) -> PreTrainedModel:
    """The model on the device of its key; on a CPU with oneDNN's linear layers."""
    to_device: Callable[..., PreTrainedModel] = model.to
    model = to_device(device=key.device)
    if key.device.type == "cpu" and key.dtype in (torch.float32, torch.bfloat16):
        use_onednn(model)
    return model


def stamp(*folders: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Name, size in bytes and time of change in ns of each weight file."""
    files = [f for folder in folders if folder for f in sorted(folder.glob("*.safetensors"))]
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@dataclass(kw_only=True)
class Shared:
    """A tokenizer and the only thread that may use it; each system adds its modules.

    digest: identifies the weights, see `weights_digest`.
    """

    tokenizer: PreTrainedTokenizerBase
    plain: Tokenizer
    worker: Worker
    digest: str
    users: int = field(default=0)

    def free(self) -> None:
        """Free everything but the worker, whose error tells late callers that it was closed."""
        self.worker.close()
        worker = self.worker
        vars(self).clear()
        self.worker = worker


M = TypeVar("M", bound=Shared)

_loaded: dict[LoadKey, Any] = {}
_abandoned: deque[tuple[LoadKey, Shared]] = deque()
_lock = Lock()


def acquire(key: LoadKey, load: Callable[[LoadKey], M]) -> M:
    """The model of this key, loaded at the first request; pair each call with `release`."""
    with _lock:
        if key not in _loaded:
            with opening():
                _loaded[key] = in_passing_thread(lambda: load(key))
        found: M = _loaded[key]
        found.users += 1
    release_abandoned()
    return found


def release(key: LoadKey, model: Shared) -> None:
    """End one use; the end of the last use frees the weights."""
    with _lock:
        model.users -= 1
        last = model.users == 0
        if last:
            del _loaded[key]
    if last:
        model.free()
        if key.device.type == "cuda":
            torch.cuda.empty_cache()


def abandon(key: LoadKey, model: Shared) -> None:
    """End one use when a model is next opened or closed.

    The garbage collector may call this in any thread, so it must not wait for the lock.
    """
    _abandoned.append((key, model))


def release_abandoned() -> None:
    """End the uses that were garbage-collected."""
    while True:
        try:
            use = _abandoned.popleft()
        except IndexError:
            return
        release(*use)


def loaded_models() -> int:
    """How many models are in memory and in use."""
    release_abandoned()
    return len(_loaded)


@contextmanager
def trying(folder: Path) -> Iterator[None]:
    """Wraps the first forward pass of a model: CheckpointError if it fails.

    Some impossible numbers in a config.json show only here.
    """
    try:
        with torch.inference_mode():
            yield
    except (torch.OutOfMemoryError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"the model in {folder} reads no text: {error}") from error
