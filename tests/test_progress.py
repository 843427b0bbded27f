"""A bar on a terminal, lines now and then elsewhere, nothing when it is not wanted."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from e2rank_rag import progress
from e2rank_rag.progress import ProgressReport


@pytest.fixture
def file():
    return io.StringIO()


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_file_gets_a_line_at_once(file):
    with ProgressReport("indexing", total=5183, console=Console(file=file)) as report:
        report.advance(256)
    assert file.getvalue() == "indexing: 0 of 5,183\n"


def test_a_file_gets_rate_and_time_left_now_and_then(file, clock):
    with ProgressReport("indexing", total=200, console=Console(file=file)) as report:
        for clock.now in (5.0, 12.0, 20.0, 24.0):
            report.advance(40)
    assert file.getvalue().splitlines() == [
        "indexing: 0 of 200",
        "indexing: 80 of 200, 7/s, 18 s left",  # 80 in 12 s, 120 to go
        "indexing: 160 of 200, 7/s, 6 s left",  # at 20 s it was 8 s since the last line
    ]


def test_without_a_total_there_is_no_time_left(file, clock):
    with ProgressReport("indexing", console=Console(file=file)) as report:
        clock.now = 30.0
        report.advance(60)
    assert file.getvalue().splitlines() == ["indexing: 0", "indexing: 60, 2/s"]


def test_a_terminal_gets_a_bar_that_is_taken_away(file):
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with ProgressReport("indexing", total=10, console=console) as report:
        report.advance(4)
        assert report._bar.tasks[0].completed == 4
    assert "indexing" in file.getvalue()
    assert not report._bar.live.is_started


def test_the_bar_ends_with_an_error_too(file):
    report = ProgressReport("x", console=Console(file=file, force_terminal=True))

    def fail():
        with report:
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not report._bar.live.is_started


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_when_it_is_not_wanted(file, terminal):
    console = Console(file=file, force_terminal=terminal)
    with ProgressReport("x", total=3, shown=False, console=console) as report:
        report.advance(3)
    assert file.getvalue() == ""


def test_it_writes_to_stderr(capsys):
    with ProgressReport("x", total=3):
        pass
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "x: 0 of 3\n")
