"""What the models of all systems share: batches in one thread, and the open model's life.

A core is a model without a thread, for training and serving alike. An open model is a core whose
calls run in the thread of its device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from e2rank_rag.closing import Closable, OpenModel
from e2rank_rag.models.runtime import (
    LoadKey,
    Shared,
    abandon,
    batch_tokens,
    release,
    release_abandoned,
)
from e2rank_rag.models.worker import Worker, keeps_state, side_by_side
from e2rank_rag.tokenization import batches_by_length
from e2rank_rag.types import T

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Shared)
C = TypeVar("C", bound="Core")


def in_its_thread(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method of a core that an open model runs in the thread of its device."""

    @wraps(method)
    def call(self: Core, *texts: P.args, **options: P.kwargs) -> R:
        return self._run(method, *texts, **options)

    return call


class Core(Closable):
    """A model without a thread; not thread-safe.

    Its modules may be in training mode and may change between calls: each call runs them without
    dropout and without gradients.

    name: the model's name in error messages.
    worker: the thread that runs it, where a call stops once its caller has given up.
    """

    def __init__(self, name: str, worker: Worker | None) -> None:
        self.name = name
        self._worker = worker

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run the call at once: this model has no thread of its own."""
        return call()

    def close(self) -> None:
        """Do nothing: the modules belong to the caller."""

    def _run(self, method: Callable[..., R], *texts: Any, **options: Any) -> R:
        return method(self, *texts, **options)

    def _computed(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], dict[str, Tensor]],
        compute: Callable[[list[int], dict[str, Tensor]], R],
        model: nn.Module,
        *,
        progress: bool | None = False,
    ) -> Iterator[tuple[list[int], R]]:
        """Places of tokenised texts of similar length, with what `compute` makes of each batch.

        compute: called with the places in `rows` and the tensors of these rows.
        progress: show a bar; None: for long calls of an open model, on a terminal.

        An open model on a CPU computes many batches side by side, each in one thread.
        """
        device = next(model.parameters()).device
        batches = list(batches_by_length([len(row.ids) for row in rows], batch_tokens(device)))
        shown: Iterable[list[int]] = batches
        if progress or (progress is None and self._worker is not None and len(batches) > 50):
            console = Console(stderr=True)
            if progress or console.is_terminal:
                shown = track(batches, description="encoding", console=console, transient=True)

        def found(places: list[int]) -> R:
            batch = collate([rows[place] for place in places])
            return compute(places, {name: part.to(device) for name, part in batch.items()})

        def wanted() -> Iterator[list[int]]:
            for places in shown:
                if self._worker is not None:
                    self._worker.check_cancelled()
                yield places

        threads = torch.get_num_threads()
        many = device.type == "cpu" and 1 < threads < len(batches)
        if self._worker is None or not many or keeps_state(model):
            for places in wanted():
                yield places, found(places)
        else:
            yield from side_by_side(found, wanted(), threads)


class ModelUser(OpenModel, Generic[M, C]):
    """One use of a model in memory, which `close` ends. Its methods are those of its core.

    A use that was garbage-collected ends when a model is next opened or closed.

    digest: identifies the weights, see `weights_digest`.
    """

    _core: C

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

    @property
    def dtype(self) -> torch.dtype:
        """In which numbers the model computes; its vectors and scores are float32."""
        return self._key.dtype

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call in this model's thread, in which the model's methods do not have to wait."""
        return await self.loaded.worker.run_async(call)

    def close(self) -> None:
        """End this use of the model; the last one frees it. Safe to call twice."""
        self._model = None
        # It refers to the weights.
        self._core = None  # type: ignore[assignment]
        use = self._abandoned.detach()
        if use is not None:
            _, _, (key, model), _ = use
            release(key, model)
        release_abandoned()

    def _run(self, method: Callable[..., R], *texts: Any, **options: Any) -> R:
        worker, core = self.loaded.worker, self._core
        return worker.run(partial(method, core, *texts, **options))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model as in serving: without dropout and without gradients.

    A model in training mode returns to training mode at the end. It runs under `no_grad`, because
    tensors that it caches in inference mode could not be used for a gradient later.
    """
    if not model.training:
        with torch.inference_mode():
            yield
        return
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def not_finite(what: str, dtype: torch.dtype, how: str = "not finite") -> FloatingPointError:
    """The error for output that cannot be ranked, with advice for the dtype."""
    if dtype == torch.float32:
        way = "float32 is the widest dtype: the weights or the given vectors are damaged"
    else:
        way = 'open it with dtype="float32"'
    return FloatingPointError(f"{what} in {dtype} that are {how}; {way}")
