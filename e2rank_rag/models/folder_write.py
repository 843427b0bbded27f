"""Writing into a model folder: whole files, with the mode of any new file, never through links."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.folder_check import ADAPTER_CONFIG, INDEX, WEIGHTS


@contextmanager
def new_files(folder: str | Path) -> Iterator[Path]:
    """An empty folder; what is written there takes its place in `folder` when all of it is there.

    A link in `folder` is replaced by the file, and what it leads to is left alone. Weights that a
    former model has left in `folder` are removed where new ones are written.

    Raises CheckpointError where a link to a folder stands in the place of one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        yield staging
        _move(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_adapted(folder: str | Path) -> None:
    """CheckpointError for a folder with an adapter of peft, which would not belong to a model that
    is written there."""
    path = Path(folder) / ADAPTER_CONFIG
    if path.exists():
        raise CheckpointError(
            f"{path} is an adapter, which would not belong to the model that is saved: name "
            "another folder"
        )


def follow_umask(folder: Path) -> None:
    """Give the safetensors files of a folder the mode of any new file; their library writes them
    for their owner alone."""
    mode = _new_file_mode(folder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def _move(staging: Path, folder: Path) -> None:
    paths = sorted(staging.rglob("*"))
    targets = {path: folder / path.relative_to(staging) for path in paths}
    for path, target in targets.items():
        if path.is_dir() and target.is_symlink():
            raise CheckpointError(
                f"{target} is a link to {target.resolve()}; remove it, or save to another folder"
            )
    mode = _new_file_mode(staging)
    for path, target in targets.items():
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            path.chmod(mode)
            os.replace(path, target)
    written = set(targets.values())
    if folder / WEIGHTS in written or folder / INDEX in written:
        for old in (folder / INDEX, *folder.glob("model*.safetensors")):
            if old not in written:
                old.unlink(missing_ok=True)


def _new_file_mode(folder: Path) -> int:
    """What the umask gives; asking for it would set it for all threads."""
    handle = folder / ".mode"
    handle.touch()
    try:
        return handle.stat().st_mode & 0o777
    finally:
        handle.unlink()
