"""Draws docs/demo.svg: what `e2rank demo` prints, exported from the terminal by rich.

python scripts/demo_picture.py
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from e2rank_rag.demo import run_demo

PICTURE = Path(__file__).parents[1] / "docs" / "demo.svg"


def main() -> None:
    console = Console(record=True, width=118, force_terminal=True)
    run_demo(console)
    console.save_svg(str(PICTURE), title="e2rank demo")


if __name__ == "__main__":
    main()
