"""What the parts of one call of `e2rank bench` share: settings, sides, peaks and an index."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from e2rank_rag.bench.settings import Settings
from e2rank_rag.bench.sides import Sides, Start


@dataclass
class Context:
    """start: starts a side. peaks: GFLOP/s, see `peak.measure`. say: told what is being done."""

    settings: Settings
    start: Start
    peaks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    _open: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """The options of a side that searches, whose index is encoded at the first use.

        See `searching.prepare` for what is in its folder.
        """
        self.say("encoding the documents of the index")
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="e2rank-bench-"))
        options = {
            **self.model_options,
            "folder": folder,
            "documents": self.settings.sizes.index,
        }
        with Sides(self.start) as sides:
            sides.add(
                "prepare", "e2rank_rag.bench.searching:prepare", options, self.settings.environment
            )
            about = sides.about()["prepare"]
        return {"folder": folder, "model": self.settings.model, "data": options["data"], **about}

    @property
    def model_options(self) -> dict[str, Any]:
        """Model and dataset, as every builder takes them."""
        data = self.settings.data
        return {
            "model": self.settings.model,
            "data": None if data is None else str(Path(data).absolute()),
        }

    def share(self, gflops: float, dtype: str, threads: int) -> float | None:
        """A rate as a share of the peak; None where no peak of this kind was measured."""
        peak = self.peaks.get(dtype, {}).get(str(threads))
        return None if peak is None else gflops / peak

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
