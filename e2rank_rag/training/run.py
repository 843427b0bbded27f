"""A run of any stage: its folder, which the first process alone writes, and where it goes on.

Processes need no disk in common: each reads the model and the data from its own, and a checkpoint
that the first process alone has is sent to the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from e2rank_rag.distributed import from_first, gather_objects, process
from e2rank_rag.training.arguments import CHECKPOINTS, training_arguments
from e2rank_rag.training.config import StageConfig
from e2rank_rag.training.record import describe_run, plot_run
from e2rank_rag.training.runs import METRICS_FILE, RUN_FOLDER, StageTrainer

STATE_FILE = "trainer_state.json"

_PIECE = 64 << 20
"""Bytes of a checkpoint that are sent at once."""


@dataclass(frozen=True)
class Run:
    """A run of a stage, as each process has it.

    folder: for its record and checkpoints, in the output. resume: whether it goes on.
    """

    config: StageConfig
    arguments: TrainingArguments
    folder: Path
    resume: bool

    @classmethod
    def begin(cls, config: StageConfig, stage: Mapping[str, Any], *, resume: bool) -> Self:
        """Reads the arguments, seeds torch and makes the folder.

        stage: its own arguments of the trainer, under those of the configuration.

        Raises ValueError as `training_arguments`, for an output that is the model to begin from,
        and for a run without a checkpoint to go on with; FileExistsError where the folder holds
        another run. In all processes alike.
        """
        folder = config.output / RUN_FOLDER
        arguments = training_arguments(config, folder, stage)
        torch.manual_seed(arguments.seed)
        arguments.device  # noqa: B018 - starts torch.distributed where there are several processes
        run = cls(config, arguments, folder, resume)
        error = from_first(run._made() if run.writes else None)
        if error is not None:
            raise error
        return run

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes."""
        return process() == 0

    def finish(
        self,
        trainer: StageTrainer,
        *,
        digest: str,
        examples: Sequence[int],
        save: Callable[[Any], object],
        **facts: Any,
    ) -> Path:
        """Record the run, train, and save the model; returns its folder.

        digest, examples, facts: see `record.describe_run`. save: writes the trained model.

        Raises ValueError where processes have read other weights or data than the first one.
        """
        self._check_alike(digest, examples)
        if self.writes:
            describe_run(self.folder / "run.json", self.config, digest, examples, **facts)
        with self._checkpoint() as checkpoint:
            trainer.train(resume_from_checkpoint=checkpoint)
        if self.writes:
            save(trainer.accelerator.unwrap_model(trainer.model))
            plot_run(self.folder / METRICS_FILE, self.folder / "metrics.png")
        return self.config.output

    def _check_alike(self, digest: str, examples: Sequence[int]) -> None:
        """Each process reads from its own disk, and none waits for one that has other batches."""
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

    def _made(self) -> Exception | None:
        """Makes the folder; returns what speaks against it."""
        base, output = Path(self.config.init_from).expanduser(), self.config.output
        if base.is_dir() and output.is_dir() and base.samefile(output):
            return ValueError(
                f"output: {output} is the folder of the model to begin from, which would be "
                "overwritten; choose another"
            )
        if (self.folder / METRICS_FILE).exists() and not self.resume:
            return FileExistsError(
                f"{self.folder} holds the record of a run: go on with it (resume), or choose "
                "another output"
            )
        if self.resume and self._newest() is None:
            return ValueError(
                f"{self.folder / CHECKPOINTS} holds no checkpoint to go on with: begin without "
                "resume, in another output"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        return None

    def _newest(self) -> Path | None:
        folder = self.folder / CHECKPOINTS
        newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        return None if newest is None else Path(newest)

    @contextmanager
    def _checkpoint(self) -> Iterator[str | None]:
        """The newest checkpoint of the first process, on a disk that this process sees."""
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
                _send(place / name, size)
            yield str(place)


def _contents(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Sizes of its files by name, and of the file that says how the run went a hash too."""
    return {
        path.relative_to(checkpoint).as_posix(): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.name == STATE_FILE else "",
        )
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }


def _send(path: Path, size: int) -> None:
    """A file of the first process, to the same path of the others."""
    first = process() == 0
    if not first:
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb" if first else "wb") as file:
        for _ in range(0, size, _PIECE):
            piece = from_first(file.read(_PIECE) if first else b"")
            if not first:
                file.write(piece)
