"""`e2rank verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import Device, Dtype, Threads, open_encoder


def verify(
    model: Annotated[str, typer.Argument(help="A released E2Rank model: hub id or folder.")],
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Compare a released E2Rank model with the cosines that its authors published."""
    from e2rank_rag.rendering import verification_table
    from e2rank_rag.verify import TOLERANCE, verify

    with open_encoder(model, device, dtype, threads) as encoder:
        result = verify(encoder)
    terminal.out.print(verification_table(result))
    difference = f"largest difference {result.largest_difference:.4f}, tolerance {TOLERANCE}"
    if not result.agrees:
        raise ValueError(f"the cosines differ from the published ones: {difference}")
    terminal.say(terminal.out, f"the cosines agree with the published ones: {difference}")
