"""The tables of a result, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from e2rank_rag.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Table:
    """missing: what could not be measured, and why, by name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    missing: Mapping[str, str] = field(default_factory=dict)

    def show(self, console: Console) -> None:
        """Print it."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(printable(self.title)), box=box.SIMPLE, title_justify="left")
        for place, name in enumerate(self.head):
            table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)
        for line in self._lacks():
            console.print(Text(printable(line)))

    def markdown(self) -> list[str]:
        """Its lines for a page."""
        lines = [f"**{self.title}**", "", f"| {' | '.join(self.head)} |"]
        lines.append(f"|{'---|' * len(self.head)}")
        lines += [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in self.rows]
        return [*lines, "", *(f"{line}  " for line in self._lacks()), ""]

    def _lacks(self) -> list[str]:
        return [f"Not measured: {name} ({reason})" for name, reason in self.missing.items()]


def cells(value: float | None, digits: int = 2) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def span(ratio: Mapping[str, Any]) -> list[str]:
    """Worst, median and best."""
    return [f"{ratio[name]:.2f}" for name in ("worst", "median", "best")]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
