"""Where the milliseconds of one query go: timers around named functions of this library.

A timer counts the time inside its functions, less the time inside other timed functions that these
call. So the phases of one query add up, and what no timer covers is "the rest". For one query at a
time: the calls may be in different threads, if each waits for the other.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

PHASES: Mapping[str, Sequence[str]] = {
    "tokenise": (
        "tokenization:TextTokenizer.queries",
        "tokenization:TextTokenizer.listwise",
    ),
    "query forward": ("models.e2rank:TextModel.encode_queries",),
    "search": ("store.qdrant:QdrantStore.search_batch",),
    "words": (
        "evidence:CandidateWords.of",
        "evidence:Evidence.added",
        "feedback:Feedback.choose",
        "feedback:Feedback.evidence",
    ),
    "prompt forward": ("models.e2rank:TextModel.encode_listwise",),
    "cosine": (
        "rerankers.ranking:score_by_vector",
        "rerankers.ranking:cosines",
        "rerankers.ranking:stacked",
        "rerankers.ranking:rank",
    ),
    "vectors": ("vectors:CandidateVectors.attach",),
}
"""phase -> its functions in `e2rank_rag`, "module:name"."""

REST = "the rest"


class Stopwatch:
    """Seconds by phase, of what runs inside `measured`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Begin anew; in this context all phases are timed."""
        self.seconds = dict.fromkeys([*PHASES, REST], 0.0)
        with ExitStack() as patches:
            for phase, names in PHASES.items():
                for name in names:
                    self._wrap(patches, phase, name)
            self._enter(REST)
            try:
                yield
            finally:
                self._leave()

    def _wrap(self, patches: ExitStack, phase: str, name: str) -> None:
        owner, attribute, found = located(name)
        if not inspect.isclass(owner):
            # Modules that imported the function hold it under a name of their own.
            for module in [*sys.modules.values()]:
                if getattr(module, "__name__", "").startswith("e2rank_rag."):
                    for key in [key for key, value in vars(module).items() if value is found]:
                        patches.enter_context(patch.object(module, key, self._timing(phase, found)))
            return
        if isinstance(found, classmethod):
            wrapped: Any = classmethod(self._timing(phase, found.__func__))
        else:
            wrapped = self._timing(phase, found)
        patches.enter_context(patch.object(owner, attribute, wrapped))

    def _timing(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            self._enter(phase)
            try:
                return function(*arguments, **options)
            finally:
                self._leave()

        return call

    def _enter(self, phase: str) -> None:
        self._count()
        self._running.append(phase)

    def _leave(self) -> None:
        self._count()
        self._running.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def located(name: str) -> tuple[Any, str, Any]:
    """The owner (a module or a class), the attribute and what it holds, by "module:name".

    Raises AttributeError for a name that is no longer there.
    """
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(f"e2rank_rag.{module}")
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, attribute, inspect.getattr_static(owner, attribute)
