"""How many threads this process may use, and one team of threads at a time.

A team of OpenMP or BLAS threads spins for a while after its work, ready for more. When numpy's team
and torch's take turns on the same cores, each waits for the other: a query then takes twice its
time (docs/performance.md). So our own arithmetic in numpy, and that of Qdrant's local mode, runs
without BLAS threads. Afterwards the caller's setting is back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

from e2rank_rag.locks import ForkAware, Lock

P = ParamSpec("P")
R = TypeVar("R")

CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 1_000_000


def usable_threads(cgroups: Path = CGROUPS) -> int:
    """The cores that this process may use, at least 1: by affinity, and by the container's quota.

    cgroups: where Linux says the quota of a container, as control groups of version 2 or 1.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    version_1 = cgroups / "cpu"
    return min(
        cores,
        _quota(cgroups / "cpu.max"),
        _quota(version_1 / "cpu.cfs_quota_us", version_1 / "cpu.cfs_period_us"),
    )


def _quota(*files: Path) -> int:
    """Quota / period of processor time, rounded up; both in one file, or a file each."""
    try:
        quota, period = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):  # no such file, or "max"
        return NO_LIMIT
    return math.ceil(quota / period) if quota > 0 and period > 0 else NO_LIMIT


class _BlasThreads(ForkAware):
    """The threads of numpy's BLAS, which are put aside while any caller is inside `aside`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._before: list[int] = []
        super().__init__()

    @cached_property
    def _libraries(self) -> ThreadpoolController:
        return ThreadpoolController().select(user_api="blas")

    @contextmanager
    def aside(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [each.num_threads for each in self._libraries.lib_controllers]
                self._set([1] * len(self._before))
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._set(self._before)

    def after_fork(self) -> None:
        # The callers that were inside are threads of the parent.
        if self._inside:
            self._inside = 0
            self._set(self._before)

    def _set(self, counts: list[int]) -> None:
        for library, count in zip(self._libraries.lib_controllers, counts, strict=True):
            if library.num_threads != count:
                library.set_num_threads(count)
                # The next to set it may be another thread.
                getattr(library, "clear_controlling_thread", bool)()


_blas = _BlasThreads()


def one_team(call: Callable[P, R]) -> Callable[P, R]:
    """A function whose arithmetic in numpy wakes no threads of BLAS."""

    @wraps(call)
    def alone(*arguments: P.args, **options: P.kwargs) -> R:
        with _blas.aside():
            return call(*arguments, **options)

    return alone
