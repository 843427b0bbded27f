"""The thread of a device: its calls, its end, and batches side by side."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from e2rank_rag.models.worker import (
    Cancelled,
    Worker,
    in_passing_thread,
    keeps_state,
    side_by_side,
)
from tests.forks import forked, outcome


@pytest.fixture
def worker():
    worker = Worker("test device")
    yield worker
    worker.close()


async def test_all_models_of_a_device_share_its_thread_and_close_one_by_one(worker):
    other, elsewhere = Worker("test device"), Worker("another device")
    threads = [each.run(threading.get_ident) for each in (worker, other, elsewhere)]
    assert threads[0] == threads[1] != threads[2]
    # A job of one may ask the other at once, and a caller who has gone is the same for both.
    assert worker.run(lambda: other.run(threading.get_ident)) == threads[0]
    assert await worker.run_async(lambda: other.run(threading.get_ident)) == threads[0]
    assert worker.run(lambda: elsewhere.run(threading.get_ident)) == threads[2]
    other.close()
    with pytest.raises(RuntimeError, match="this model was closed"):
        other.run(lambda: 1)
    assert worker.run(threading.get_ident) == threads[0]
    elsewhere.close()


def test_closing_waits_for_its_own_calls_only(worker):
    hold, started = threading.Event(), threading.Event()

    def job():
        started.set()
        assert hold.wait(10)

    other = Worker("test device")
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(worker.run, job)
        assert started.wait(10)
        waiting = pool.submit(other.run, lambda: 1)
        while not other._jobs:
            time.sleep(0.001)
        other.close()
        with pytest.raises(RuntimeError, match="this model was closed"):
            waiting.result(10)
        assert not running.done()
        hold.set()
        running.result(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_goes_on_in_a_thread_of_its_own(worker):
    thread = worker.run(threading.get_native_id)

    def use():
        assert worker.run(threading.get_native_id) not in (thread, threading.get_native_id())

    assert outcome(forked(use)) == 0
    assert worker.run(threading.get_native_id) == thread


async def test_every_call_runs_in_the_one_thread(worker):
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(lambda _: worker.run(threading.get_ident), range(50)))
    names |= set(await asyncio.gather(*[worker.run_async(threading.get_ident) for _ in range(50)]))
    assert len(names) == 1
    assert threading.get_ident() not in names


def test_calls_run_one_after_the_other(worker):
    inside, most = 0, 0

    def call():
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: worker.run(call), range(40)))
    assert most == 1


async def test_a_call_from_inside_runs_at_once(worker):
    assert worker.run(lambda: worker.run(lambda: worker.run(lambda: 7))) == 7
    assert await worker.run_async(lambda: worker.run(lambda: 8)) == 8
    assert worker.run(lambda: asyncio.run(worker.run_async(lambda: 9))) == 9


async def test_errors_reach_the_caller_and_leave_the_worker_usable(worker):
    def fail():
        raise KeyError("cats")

    with pytest.raises(KeyError, match="cats"):
        worker.run(fail)
    with pytest.raises(KeyError, match="cats"):
        await worker.run_async(fail)
    assert worker.run(lambda: 1) == 1


async def test_a_cancelled_task_leaves_the_queue(worker):
    hold, ran = threading.Event(), []
    first = asyncio.create_task(worker.run_async(hold.wait))
    second = asyncio.create_task(worker.run_async(lambda: ran.append(2)))
    third = asyncio.create_task(worker.run_async(lambda: ran.append(3)))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    hold.set()
    await asyncio.gather(first, third)
    assert ran == [3]


async def test_a_running_job_learns_that_its_caller_has_gone(worker):
    started, outcome = threading.Event(), []

    def job():
        started.set()
        try:
            while True:
                worker.check_cancelled()
                time.sleep(0.001)
        except Cancelled:
            outcome.append("stopped")
            raise

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(worker.run_async(job), 0.1)
    assert started.is_set()
    # The next job runs, so the first one has ended.
    assert await worker.run_async(lambda: 1) == 1
    assert outcome == ["stopped"]


def test_checking_outside_a_job_does_nothing(worker):
    worker.check_cancelled()


def test_a_job_whose_caller_waits_is_not_stopped(worker):
    assert worker.run(lambda: [worker.check_cancelled(), 5][1]) == 5


async def test_a_closed_worker_says_so(worker):
    worker.close()
    worker.close()
    with pytest.raises(RuntimeError, match="this model was closed; open it again"):
        worker.run(lambda: 1)
    with pytest.raises(RuntimeError, match="this model was closed; open it again"):
        await worker.run_async(lambda: 1)


async def test_closing_finishes_what_runs_and_tells_those_who_wait(worker):
    hold, started = threading.Event(), threading.Event()

    def job():
        started.set()
        assert hold.wait(10)
        return "done"

    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(worker.run, job)
        assert started.wait(10)
        waiting = pool.submit(worker.run, lambda: 1)
        task = asyncio.create_task(worker.run_async(lambda: 1))
        await asyncio.sleep(0.05)
        closing = pool.submit(worker.close)
        # An error and not CancelledError, which would end the caller's own task.
        with pytest.raises(RuntimeError, match="this model was closed"):
            await task
        with pytest.raises(RuntimeError, match="this model was closed"):
            waiting.result(10)
        hold.set()
        assert running.result(10) == "done"
        closing.result(10)


def test_a_passing_thread_ends_with_its_call():
    thread = in_passing_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    with pytest.raises(KeyError, match="cats"):
        in_passing_thread(lambda: {}["cats"])


def test_a_worker_may_be_closed_from_its_own_thread(worker):
    worker.run(worker.close)
    with pytest.raises(RuntimeError, match="closed"):
        worker.run(lambda: 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_side_by_side_come_back_in_order_each_from_one_thread(worker, threads):
    def square(number):
        time.sleep(0.001 * (number % 3))
        return number**2, torch.get_num_threads()

    def run():
        torch.set_num_threads(2)
        return list(side_by_side(square, iter(range(9)), threads)), torch.get_num_threads()

    found, after = worker.run(run)
    assert found == [(number, (number**2, 1)) for number in range(9)]
    assert after == threads


def test_an_error_in_one_batch_reaches_the_caller_and_ends_the_threads(worker):
    def fail(number):
        if number == 2:
            raise FloatingPointError("number 2")
        return number

    before = threading.active_count()
    with pytest.raises(FloatingPointError, match="number 2"):
        worker.run(lambda: list(side_by_side(fail, iter(range(100)), 2)))
    assert threading.active_count() <= before + 1  # the worker's own


def test_models_whose_positions_depend_on_the_length_compute_one_batch_after_the_other():
    module = torch.nn.Linear(2, 2)
    assert not keeps_state(module)
    module.rope_type = "dynamic"
    assert keeps_state(torch.nn.Sequential(module))
