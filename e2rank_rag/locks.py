"""Locks that survive forks, copies and pickles.

A forked child has only the thread that forked. A lock that another thread of the parent held would
stay locked for ever in the child, and a job of such a thread would never end. So the child gets new
locks and forgets the jobs. A module that another thread was importing would stay half imported in
the child. Opening a model imports modules, so a fork waits until no model is being opened.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic
from weakref import WeakSet

from e2rank_rag.types import T

LONGEST_WAIT_S = 10.0
"""How long a fork waits for models that are being opened. Imports take less, downloads may take
more."""


class ForkAware:
    """An object whose `after_fork` is called in a forked child before anything else."""

    def __init__(self) -> None:
        _alive.add(self)

    def after_fork(self) -> None:
        """Forget work that only other threads of the parent could have finished."""
        raise NotImplementedError


_alive: WeakSet[ForkAware] = WeakSet()


class _Openings:
    """The threads that are opening a model."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.changed = threading.Condition()

    def others(self) -> bool:
        return any(thread != threading.get_ident() for thread in self.threads)


_openings = _Openings()


@contextmanager
def opening() -> Iterator[None]:
    """Wraps the opening of a model and its imports: a fork in another thread waits for the end."""
    here, now = threading.get_ident(), _openings
    with now.changed:
        now.threads.append(here)
    try:
        yield
    finally:
        with now.changed:
            now.threads.remove(here)
            now.changed.notify_all()


def _before_fork() -> None:
    # Held until the fork is over, so that no model is opened in between.
    _openings.changed.acquire()
    _openings.changed.wait_for(lambda: not _openings.others(), LONGEST_WAIT_S)


def _after_fork_in_parent() -> None:
    _openings.changed.release()


def _after_fork_in_child() -> None:
    global _openings
    _openings = _Openings()
    for each in list(_alive):
        each.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


class Lock(ForkAware):
    """A `threading.RLock` that is free in a forked child. Copies and pickles are new locks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        super().__init__()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def after_fork(self) -> None:
        self._lock = threading.RLock()


class Kept(Generic[T]):
    """An object that is made at first use, and made again when its arguments have changed.

    closes: `clear` closes the object. A replaced object is only dropped, because other threads may
        be using it.

    Copies and pickles begin empty: each makes its own object.
    """

    def __init__(self, *, closes: bool = False) -> None:
        self._closes = closes
        self._lock = Lock()
        self._known: tuple[object, T] | None = None

    @property
    def known(self) -> T | None:
        """The object, if one was made."""
        known = self._known
        return None if known is None else known[1]

    def get(self, made_of: object, make: Callable[[], T]) -> T:
        """The object for these arguments; `make` runs in one thread at a time."""
        known = self._known
        if known is not None and known[0] == made_of:
            return known[1]
        with self._lock:
            known = self._known  # another thread may have been faster
            if known is not None and known[0] == made_of:
                return known[1]
            with opening():
                value = make()
            self._known = (made_of, value)
        return value

    def put(self, made_of: object, value: T) -> None:
        """Keep an object that was made elsewhere."""
        with self._lock:
            self._known = (made_of, value)

    def clear(self) -> None:
        """Drop the object; the next `get` makes another one."""
        with self._lock:
            known, self._known = self._known, None
        thing: Any = None if known is None else known[1]
        if self._closes and thing is not None:
            thing.close()

    def __eq__(self, other: object) -> bool:
        """True: components with the same settings are equal, whatever objects they have opened."""
        return isinstance(other, Kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), closes=self._closes), ()
