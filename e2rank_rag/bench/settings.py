"""What `e2rank bench` measures, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from e2rank_rag.models.shipped import DEFAULT_MODEL

MAX_LENGTH = 256
"""Tokens of a document, for every side of every comparison."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    documents: encoded in the part `encode`.
    index: documents of the index that queries search, from the dataset's first on.
    rounds: how often every side takes its turn.
    queries: calls of one side in one round, where a call is a query.
    candidates, depths, engines: the numbers that these parts go through.
    chain_queries: calls of one side in one round of the part `candidates`, whose queries take long.
    peak: rows of the square matrices whose product is the peak.
    peak_seconds: how long a product is repeated.
    """

    documents: int = 64
    index: int = 1000
    rounds: int = 3
    queries: int = 10
    candidates: tuple[int, ...] = (10, 50, 100)
    chain_queries: int = 2
    depths: tuple[int, ...] = (0, 1, 3, 5, 10, 20, 40)
    engines: tuple[int, ...] = (1_000, 10_000)
    peak: int = 2048
    peak_seconds: float = 1.0


FULL = Sizes(
    documents=1000,
    index=10_000,
    rounds=5,
    queries=20,
    candidates=(10, 50, 100, 300, 1000),
    engines=(1_000, 10_000, 100_000),
)
"""The figures of docs/performance.md: an hour or more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """model: an E2Rank by its name, folder or hub id. threads: of each side, where they are equal.

    data: a BEIR folder in place of SciFact. url: a Qdrant server for the part `engines`.
    """

    threads: int
    model: str = DEFAULT_MODEL
    data: Path | None = None
    url: str | None = None
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give a process these threads, in every library."""
        return threads_environment(self.threads)


def threads_environment(threads: int) -> dict[str, str]:
    """The variables that give a process this number of threads in every library."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
