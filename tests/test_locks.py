"""Locks in a forked child, and what is kept for as long as its parts are the same."""

from __future__ import annotations

import copy
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2rank_rag.locks import Kept, Lock
from tests.forks import forked, held, outcome


class Door:
    def __init__(self, log, name):
        self.log, self.name = log, name
        log.append(f"open {name}")

    def close(self):
        self.log.append(f"close {self.name}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_lock_is_free_in_a_forked_child_whoever_held_it():
    lock = Lock()

    def hold(has_it, let_go):
        with lock:
            has_it.set()
            let_go.wait(20)

    def use():
        with lock:
            pass

    with held(hold):
        assert outcome(forked(use)) == 0
    use()


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_of_a_lock_is_a_lock_of_its_own(again):
    lock = Lock()
    with lock:
        other = again(lock)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: other.__enter__() is None).result(5)


def test_a_kept_thing_is_made_once_and_anew_when_its_parts_change():
    log = []
    kept = Kept(closes=True)
    for name in ("a", "a", "b"):
        assert kept.get(name, lambda name=name: Door(log, name)).name == name
    assert log == ["open a", "open b"]  # others may be using the first one
    kept.clear()
    kept.clear()
    assert log[2:] == ["close b"]
    assert kept.known is None


def test_threads_that_ask_at_once_get_one_thing():
    kept = Kept()

    def make():
        time.sleep(0.01)
        return object()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: kept.get("a", make), range(16)))) == 1


def test_what_could_not_be_made_leaves_what_was_there():
    kept = Kept()
    first = kept.get("a", object)
    with pytest.raises(ZeroDivisionError):
        kept.get("b", lambda: 1 / 0)
    assert kept.get("a", object) is first


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_of_a_kept_thing_begins_empty(again):
    log = []
    kept = Kept(closes=True)
    kept.get("a", lambda: Door(log, "a"))
    other = again(kept)
    assert other.known is None
    other.get("a", lambda: Door(log, "copy"))
    other.clear()
    assert log == ["open a", "open copy", "close copy"]
