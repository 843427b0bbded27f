"""Deadlines of blocking calls, and the waits that servers ask for."""

from __future__ import annotations

import contextvars
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from e2rank_rag.remote import asked_wait_s, within


def test_a_call_within_its_time_returns_or_raises_as_it_is():
    assert within(5.0, lambda: 3) == 3
    assert within(None, threading.current_thread) is threading.current_thread()
    with pytest.raises(KeyError, match="x"):
        within(5.0, lambda: {}["x"])


def test_a_call_beyond_its_time_is_given_up():
    done = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.1, lambda: done.wait(60.0))
    done.set()


def test_a_call_sees_the_context_of_its_caller():
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("inside")
    assert within(5.0, variable.get) == "inside"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
        ("Wed, 99 Foo", 0.0),
        ("Wed, 21 Oct 99999999 07:28:00 GMT", 0.0),
    ],
)
def test_a_wait_is_read_from_its_header(value, seconds):
    assert asked_wait_s(value) == seconds


def test_a_wait_until_a_date_is_counted_from_now():
    date = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    before = datetime.now(UTC)
    seconds = asked_wait_s(format_datetime(date, usegmt=True))
    after = datetime.now(UTC)
    assert (date - after).total_seconds() <= seconds <= (date - before).total_seconds()


def test_a_date_that_has_passed_asks_for_no_wait():
    date = datetime.now(UTC) - timedelta(days=1)
    assert asked_wait_s(format_datetime(date, usegmt=True)) == 0.0
