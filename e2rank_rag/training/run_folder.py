"""The run folder of a training run: its record, its figures and its checkpoints.

Processes need no shared disk. Each reads the model and the data from its own, the first process
alone writes, and it sends the others a checkpoint that they lack.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import e2rank_rag
from e2rank_rag.distributed import from_first, gather_objects, process
from e2rank_rag.lines import read_lines
from e2rank_rag.training.arguments import CHECKPOINTS, training_arguments
from e2rank_rag.training.config import Source, StageConfig

logger = logging.getLogger(__name__)

RUN_FOLDER = "run"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "trainer_state.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")

_PIECE = 64 << 20
"""Bytes of a checkpoint that are sent at once."""


@dataclass(frozen=True)
class RunFolder:
    """The folder `run` in the output, as each process sees it.

    resume: whether the training run goes on from a checkpoint.
    writes: whether this is the process that writes; only one is.
    """

    config: StageConfig
    arguments: TrainingArguments
    path: Path
    resume: bool
    writes: bool

    @classmethod
    def begin(cls, config: StageConfig, defaults: Mapping[str, Any], *, resume: bool) -> Self:
        """Read the trainer's arguments, seed torch and make the folder.

        defaults: arguments of the stage, which those of the configuration replace.

        Raises, in all processes alike, ValueError for arguments that `training_arguments` refuses,
        for an output that is the base, and for a training run without a checkpoint to resume from;
        FileExistsError if the folder holds another training run.
        """
        path = config.output / RUN_FOLDER
        arguments = training_arguments(config, path, defaults)
        torch.manual_seed(arguments.seed)
        arguments.device  # noqa: B018 - starts torch.distributed if there are several processes
        folder = cls(config, arguments, path, resume, writes=process() == 0)
        error = from_first(folder._made() if folder.writes else None)
        if error is not None:
            raise error
        return folder

    @property
    def metrics(self) -> Path:
        """The file of everything that is logged, one JSON object a line."""
        return self.path / METRICS_FILE

    def check_alike(self, digest: str, examples: Sequence[int]) -> None:
        """ValueError, in all processes, if they begin from different weights or data.

        digest: of the weights. examples: how many each source of `config.data` gave.
        """
        held = gather_objects((digest, tuple(examples)))
        for number, (weights, counts) in enumerate(held):
            if weights != held[0][0]:
                raise ValueError(
                    f"process {number} begins from other weights than process 0: give all the "
                    f"same {self.config.init_from}"
                )
            if counts != held[0][1]:
                raise ValueError(
                    f"process {number} has read {list(counts)} examples of the sources, process 0 "
                    f"{list(held[0][1])}: give all the same data"
                )

    def describe(self, digest: str, examples: Sequence[int], **facts: Any) -> None:
        """Write `run.json`: configuration, base weights, hashes of the data and versions.

        digest, examples: as in `check_alike`. facts: more of it, as JSON values.
        """
        sources = [*self.config.data, *self.config.dev]
        counts: list[int | None] = [*examples, *[None] * len(self.config.dev)]
        record: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "base": {"name": self.config.init_from, "weights": digest},
            "data": [
                {
                    "path": str(source.path),
                    "examples": count,
                    "sha256": {file.name: _sha256(file) for file in _files(source)},
                }
                for source, count in zip(sources, counts, strict=True)
            ],
            **facts,
            "versions": {
                "e2rank-rag": e2rank_rag.__version__,
                "python": platform.python_version(),
                **{package: _version(package) for package in PACKAGES},
            },
        }
        text = json.dumps(record, indent=2) + "\n"
        (self.path / "run.json").write_text(text, encoding="utf-8")

    def plot(self) -> None:
        """Draw losses and dev figures over the steps; without matplotlib, log a warning."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            logger.warning("no plot was drawn: pip install 'e2rank-rag[plots]'")
            return
        records = [json.loads(line) for _, line in read_lines(self.metrics)]
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        losses, figures = figure.subplots(1, 2)
        for axes, names, label in (
            (losses, ("loss", "info_nce", "ranknet"), "loss"),
            (figures, ("eval_retrieve", "eval_rerank"), "nDCG@10, mean of the dev sets"),
        ):
            for name in names:
                points = [(record["step"], record[name]) for record in records if name in record]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name.removeprefix("eval_"))
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            if axes.has_data():
                axes.legend()
        figure.savefig(self.path / "metrics.png", dpi=120)

    @contextmanager
    def checkpoint(self) -> Iterator[str | None]:
        """The first process's newest checkpoint, on this process's disk; None without resume."""
        if not self.resume:
            yield None
            return
        newest = self._newest()
        held = None if newest is None else _contents(newest)
        wanted = from_first(held)
        if all(gather_objects(held == wanted)):
            yield str(newest)
            return
        with TemporaryDirectory(prefix="e2rank-") as own:
            place = newest if self.writes and newest is not None else Path(own) / "checkpoint-0"
            for name, (size, _) in (wanted or {}).items():
                self._send(place / name, size)
            yield str(place)

    def _made(self) -> Exception | None:
        """Make the folder, or return the error that forbids it."""
        base, output = Path(self.config.init_from).expanduser(), self.config.output
        if base.is_dir() and output.is_dir() and base.samefile(output):
            return ValueError(
                f"output: {output} is the folder of the model to begin from, which would be "
                "overwritten; choose another"
            )
        if self.metrics.exists() and not self.resume:
            return FileExistsError(
                f"{self.path} holds the record of a training run: go on with it (resume), or "
                "choose another output"
            )
        if self.resume and self._newest() is None:
            return ValueError(
                f"{self.path / CHECKPOINTS} holds no checkpoint to go on with: begin without "
                "resume, in another output"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        return None

    def _newest(self) -> Path | None:
        folder = self.path / CHECKPOINTS
        newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        return None if newest is None else Path(newest)

    def _send(self, path: Path, size: int) -> None:
        """Copy a file of the first process to this path of the others."""
        if not self.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb" if self.writes else "wb") as file:
            for _ in range(0, size, _PIECE):
                piece = from_first(file.read(_PIECE) if self.writes else b"")
                if not self.writes:
                    file.write(piece)


def _contents(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """The size of each file by its name; of the trainer's state a hash too, to tell runs apart."""
    return {
        path.relative_to(checkpoint).as_posix(): (
            path.stat().st_size,
            _sha256(path) if path.name == STATE_FILE else "",
        )
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }


def _files(source: Source) -> list[Path]:
    if source.path.is_dir():
        return sorted(path for path in source.path.rglob("*.*sv*") if path.is_file()) + sorted(
            source.path.glob("*.jsonl*")
        )
    return [source.path, *([source.corpus] if source.corpus else [])]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
