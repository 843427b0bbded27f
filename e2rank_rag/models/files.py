"""Reading and writing in a model folder, safely: the folder may come from a stranger.

Its numbers are used and nothing else: no file of it names code, another model, a file outside, or
work without end. What is read is checked first: that it lies inside the folder, its size, its
depth. What is written are whole files with the mode of any new file, never through links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.shipped import ADAPTED_FOLDER, installed_folder

MAX_JSON_BYTES = 16 << 20
"""Of a small file. Those of large models take up to 2 MB."""

MAX_TABLE_BYTES = 128 << 20
"""Of a tokenizer or an index of shards. The largest tokenizers take 35 MB."""

MAX_JSON_DEPTH = 64

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"

_READ_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}

_TABLES = ("vocab.json", "vocab.txt", "merges.txt", "chat_template.json")


def inside(folder: Path, name: str) -> Path:
    """The path of a part of the folder; CheckpointError where a link or `..` leads out of it.

    A snapshot of the hub's cache is links into the `blobs` beside it, which belong to it.
    """
    root, path = folder.resolve(), folder / name
    try:
        found = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise CheckpointError(f"{path} leads nowhere: {error}") from None
    if found.is_relative_to(root) or any(found.is_relative_to(each) for each in _blobs(root)):
        return path
    # Some installers put links in place of files.
    installed = [each for each in (ADAPTED_FOLDER, installed_folder()) if each is not None]
    if any(root.is_relative_to(each.resolve()) for each in installed):
        return path
    raise CheckpointError(
        f"{path} leads to {found}, which is outside the model folder; put a copy of the file there"
    )


def _blobs(root: Path) -> list[Path]:
    """Where a snapshot keeps its files: those of its repository, and those all of them share."""
    for parent in (root, *root.parents):
        if parent.parent.name == "snapshots":
            repository = parent.parent.parent
            return [repository / "blobs", repository.parent / "blobs"]
    return []


def read_json(path: Path, default: Any = None, *, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """CheckpointError for what is no JSON, holds NaN or half a character, is over `most_bytes`, or
    nests too deep."""
    if default is not None and not path.is_file():
        return default
    try:
        text = read_text(path, most_bytes=most_bytes)
        content = json.loads(text, parse_constant=_constant)
        if re.search(r"\\u[dD]", text):
            json.dumps(content, ensure_ascii=False).encode()  # not of half a character
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = "nests too deep" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path} cannot be read: {reason}") from None
    _check_depth(content, path)
    return content


def _constant(name: str) -> float:
    # Some state space models state the infinity.
    if name == "NaN":
        raise ValueError("it holds NaN, which is no number")
    return float(name)


def read_text(path: Path, *, most_bytes: int = MAX_JSON_BYTES) -> str:
    """CheckpointError for what is no text, or over `most_bytes`."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if len(content) > most_bytes:
        raise CheckpointError(
            f"{path} is larger than {most_bytes >> 20} MiB, the limit for such a file"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no UTF-8 text: {error}") from None


def _check_depth(content: Any, path: Path) -> None:
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        level = (
            [
                value
                for each in level
                for value in (each.values() if isinstance(each, dict) else each)
                if isinstance(value, dict | list)
            ]
            if level and isinstance(level[0], dict | list)
            else []
        )
        if not level:
            return
    raise CheckpointError(f"{path} nests deeper than {MAX_JSON_DEPTH} levels")


def check_folder(folder: Path) -> None:
    """CheckpointError where a file that could be read leads out of the folder, or where the folder
    holds an adapter of peft beside the weights, which nothing here would apply."""
    templates = folder / "additional_chat_templates"
    for parent in (folder, templates):
        if parent.is_dir():
            for path in parent.iterdir():
                if path.suffix in _READ_SUFFIXES:
                    inside(folder, str(path.relative_to(folder)))
                    _check_size(path)
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} is an adapter beside the model, and vectors without it "
            "would be another model's: merge it (peft's merge_and_unload, then save_pretrained "
            "to a new folder), or remove the file to have the model without it"
        )


def _check_size(path: Path) -> None:
    read_whole = path.name in _TABLES or path.suffix in (".model", ".jinja")
    if read_whole and path.stat().st_size > MAX_TABLE_BYTES:
        raise CheckpointError(
            f"{path} is larger than {MAX_TABLE_BYTES >> 20} MiB, the limit for such a file"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, for people to read."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


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
