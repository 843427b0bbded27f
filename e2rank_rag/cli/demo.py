"""`e2rank demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import Dtype, Model, Threads, opening_options
from e2rank_rag.models.shipped import DEFAULT_MODEL


def demo(
    model: Model = DEFAULT_MODEL,
    index: Annotated[Path | None, typer.Option(help="Folder for the index.")] = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Index SciFact (it ships with the package), search it, rerank, and measure."""
    from e2rank_rag.demo import run_demo

    run_demo(terminal.out, model=model, folder=index, **opening_options(None, dtype, threads))
