"""Tables for a terminal and for a page."""

from __future__ import annotations

import io

from rich.console import Console

from e2rank_rag.bench.tables import Table, cells, span

TABLE = Table("A | title\x1b", ["side", "ms"], [["a|b\x1b[2J", "1.0"]], {"theirs": "no package"})


def test_a_terminal_gets_no_control_characters_from_a_table():
    file = io.StringIO()
    TABLE.show(Console(file=file, width=80))
    shown = file.getvalue()
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert "Not measured: theirs (no package)" in shown


def test_a_page_gets_markdown():
    lines = TABLE.markdown()
    assert "| side | ms |" in lines
    assert "|---|---|" in lines
    assert any(line.startswith("| a\\|b") for line in lines)
    assert "Not measured: theirs (no package)" in "\n".join(lines)


def test_cells_and_spans_are_rounded():
    assert cells(None) == ""
    assert cells(1.005, 1) == "1.0"
    assert span({"worst": 1.0, "median": 1.234, "best": 2.0, "pairs": []}) == [
        "1.00",
        "1.23",
        "2.00",
    ]
