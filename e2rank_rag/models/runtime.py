"""Models in memory: how they are opened, and one copy of the weights for all users."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, TypeVar, get_args

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.locks import Lock, opening
from e2rank_rag.models.cpu import has_bfloat16, use_onednn
from e2rank_rag.models.folders import FoundModel, find_model
from e2rank_rag.models.worker import Worker, in_passing_thread

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
        raise ValueError(
            f"threads must be 1 or more, got {threads}; None takes as many as the process may use"
        )


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
