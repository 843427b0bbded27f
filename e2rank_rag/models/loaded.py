"""Models in memory: one copy of the weights for all that use them."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from e2rank_rag.closing import OpenModel
from e2rank_rag.errors import CheckpointError
from e2rank_rag.locks import Lock, opening
from e2rank_rag.models.adapter import with_adapter
from e2rank_rag.models.backbone import Backbone
from e2rank_rag.models.checkpoint import load_tokenizer, load_transformer, weights_digest
from e2rank_rag.models.cpu import use_onednn
from e2rank_rag.models.tokenizer_check import check_ids
from e2rank_rag.models.worker import Worker, in_passing_thread
from e2rank_rag.tokenization import plain_tokenizer
from e2rank_rag.types import Embeddings, T


@dataclass(frozen=True)
class LoadKey:
    """What makes two requests the same model in memory; lengths and prompts do not count.

    stamp: sizes and times of the weight files, so that a folder which training has overwritten is
    another model.
    adapter: folder of the listwise adapter, where there is one.
    system: what is made of the weights, see `recipe.System`; of a ranker, the structure too.
    """

    folder: Path
    stamp: tuple[tuple[str, int, int], ...]
    dtype: torch.dtype
    device: torch.device
    attn_implementation: str | None
    adapter: Path | None = None
    system: str = "e2rank"


def stamp(*folders: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Name, size in bytes and time of change in ns of each weight file."""
    files = [f for folder in folders if folder for f in sorted(folder.glob("*.safetensors"))]
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@dataclass(kw_only=True)
class Shared:
    """A tokenizer, and the thread that alone may use it; a system adds its weights.

    digest: of the weights.
    """

    tokenizer: PreTrainedTokenizerBase
    plain: Tokenizer
    worker: Worker
    digest: str
    users: int = field(default=0)

    def free(self) -> None:
        """Let go of everything but the worker, which tells late callers that it was closed."""
        self.worker.close()
        worker = self.worker
        vars(self).clear()
        self.worker = worker


class RecentVectors:
    """The last vectors that were asked for, so many at most; for one thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._vectors: dict[Hashable, Embeddings] = {}

    def get(self, key: Hashable) -> Embeddings | None:
        found = self._vectors.pop(key, None)
        if found is not None:
            self._vectors[key] = found
        return found

    def put(self, key: Hashable, vector: Embeddings) -> None:
        self._vectors[key] = vector.copy()
        if len(self._vectors) > self.size:
            del self._vectors[next(iter(self._vectors))]


@dataclass(kw_only=True)
class LoadedModel(Shared):
    """What an encoder needs.

    listwise: what reads listwise prompts; the transformer itself, unless there is an adapter.
    queries: vectors of the last queries. A pipeline encodes a query to search, and its reranker,
        often another encoder of the same model, asks for the same vector again.
    """

    transformer: PreTrainedModel
    listwise: PreTrainedModel
    queries: RecentVectors = field(default_factory=lambda: RecentVectors(256))


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
    _release_abandoned()
    return found


def release(key: LoadKey, model: Shared) -> None:
    """Give one use back; the last one frees the weights."""
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
    """Give one use back when a model is opened or closed next.

    The garbage collector calls this in any thread, also in one that a holder of the lock waits for.
    """
    _abandoned.append((key, model))


def _release_abandoned() -> None:
    while True:
        try:
            use = _abandoned.popleft()
        except IndexError:
            return
        release(*use)


class ModelUser(OpenModel, Generic[M]):
    """One use of a model in memory, given back by `close`.

    One that nothing refers to any more is given back when a model is opened or closed next.

    digest: of the model's weights.
    """

    def __init__(self, key: LoadKey, model: M, *, name: str) -> None:
        self.name = name
        self.digest = model.digest
        self._key = key
        self._model: M | None = model
        self._abandoned = weakref.finalize(self, abandon, key, model)
        self._abandoned.atexit = False

    @property
    def loaded(self) -> M:
        """Weights, tokenizer and thread, which all users of the model share."""
        model = self._model
        if model is None:
            raise RuntimeError(
                f"{self.name} was closed; open it again with {type(self).__name__}.from_pretrained"
            )
        return model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._key.device

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call in the thread of this model, whose methods run at once when called there."""
        return await self.loaded.worker.run_async(call)

    def close(self) -> None:
        """Give the model back; the last one that uses it frees it. Safe to call twice."""
        self._model = None
        self._drop()
        use = self._abandoned.detach()
        if use is not None:
            _, _, (key, model), _ = use
            release(key, model)
        _release_abandoned()

    def _drop(self) -> None:
        """Let go of what was made of the weights, which would stay in memory with it."""


def loaded_models() -> int:
    """How many models are in memory and in use."""
    _release_abandoned()
    return len(_loaded)


@contextmanager
def trying(folder: Path) -> Iterator[None]:
    """While a model that was just opened reads a first text: CheckpointError where it cannot, as
    under numbers in a config.json that are none."""
    try:
        with torch.inference_mode():
            yield
    except (torch.OutOfMemoryError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"the model in {folder} reads no text: {error}") from error


def load_encoder(key: LoadKey) -> LoadedModel:
    """Weights, listwise adapter and tokenizer of an encoder."""
    tokenizer = load_tokenizer(key.folder)
    load = partial(load_transformer, key.folder, attn_implementation=key.attn_implementation)
    transformer = load(dtype=key.dtype)
    plain = plain_tokenizer(tokenizer)
    check_ids(tokenizer, plain, transformer)
    # The digest is of values in bfloat16, which rounding to float16 first would change.
    rounded = key.dtype == torch.float16
    digest = weights_digest(load(dtype=torch.float32) if rounded else transformer)
    # Before the adapter, so that what the two share is one tensor there too.
    to_device: Callable[..., PreTrainedModel] = transformer.to
    transformer = to_device(device=key.device)
    listwise = transformer if key.adapter is None else with_adapter(transformer, key.adapter)
    if key.device.type == "cpu" and key.dtype == torch.float32:
        use_onednn(transformer)
        use_onednn(listwise)
    with trying(key.folder):
        ids = torch.tensor([tokenizer("a")["input_ids"]], device=key.device)
        Backbone(transformer)(ids, torch.ones_like(ids), torch.ones_like(ids))
    return LoadedModel(
        transformer=transformer,
        listwise=listwise,
        tokenizer=tokenizer,
        plain=plain,
        digest=digest,
        worker=Worker(str(key.device)),
    )
