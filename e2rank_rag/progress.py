"""Progress of a long job: a bar on a terminal, a line now and then if the output is a file."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from e2rank_rag.terminal import printable

SECONDS_BETWEEN_LINES = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


class ProgressReport:
    """`with ProgressReport("indexing", total=5183) as report: report.advance(256)`.

    total: None if unknown. shown: False makes it silent. Writes to stderr by default.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int | None = None,
        shown: bool = True,
        console: Console | None = None,
    ) -> None:
        self.description = printable(description)
        self.total = total
        self._shown = shown
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._done = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        if self._shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self.description, total=self.total)
        elif self._shown:
            self._console.print(self._line(), markup=False)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Add to the number that is done."""
        self._done += count
        if self._bar is not None:
            self._bar.advance(self._bar.tasks[0].id, count)
        elif self._shown and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(self._line(), markup=False)

    def _line(self) -> str:
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        of = "" if self.total is None else f" of {self.total:,}"
        line = f"{self.description}: {self._done:,}{of}"
        if not self._done:
            return line
        left = "" if self.total is None else f", {(self.total - self._done) / rate:,.0f} s left"
        return f"{line}, {rate:,.0f}/s{left}"
