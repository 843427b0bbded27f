"""Calls in a forked child, which must come back."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager


def forked(call: Callable[[], object], seconds: int = 20) -> int:
    """The id of a forked child that calls, and is killed when it takes longer than that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork
        child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    status = 1
    try:
        call()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def outcome(child: int) -> int:
    """0 where the call came back, 1 where it raised, -SIGALRM where it hung."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def held(take: Callable[[threading.Event, threading.Event], object]):
    """While another thread runs `take(has_it, let_go)`, from `has_it` on."""
    has_it, let_go = threading.Event(), threading.Event()
    thread = threading.Thread(target=take, args=(has_it, let_go))
    thread.start()
    try:
        assert has_it.wait(20)
        yield
    finally:
        let_go.set()
        thread.join()
