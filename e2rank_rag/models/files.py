"""Reading and writing in a model folder, safely: the folder may come from a stranger.

Only its numbers are used: no file in it can name code, another model or a file outside, or cause
endless work. The place, size and depth of a file are checked before it is read. Files are written
completely or not at all, with the mode of any new file, and never through links.
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
"""Limit for a small file; large models have files of up to 2 MB."""

MAX_TABLE_BYTES = 128 << 20
"""Limit for a tokenizer or an index of shards; the largest tokenizers take 35 MB."""

MAX_JSON_DEPTH = 64

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"

_READ_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}

_TABLES = ("vocab.json", "vocab.txt", "merges.txt", "chat_template.json")


def inside(folder: Path, name: str) -> Path:
    """The path of a file in the folder; CheckpointError if a link or `..` leads out of it.

    The files of a snapshot in the hub's cache are links to the `blobs` beside it, which is allowed.
    """
    root, path = folder.resolve(), folder / name
    try:
        found = path.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise CheckpointError(f"{path} leads nowhere: {error}") from None
    if found.is_relative_to(root) or any(found.is_relative_to(each) for each in _blobs(root)):
        return path
    # Some installers write links instead of files.
    installed = [each for each in (ADAPTED_FOLDER, installed_folder()) if each is not None]
    if any(root.is_relative_to(each.resolve()) for each in installed):
        return path
    raise CheckpointError(
        f"{path} leads to {found}, which is outside the model folder; put a copy of the file there"
    )


def _blobs(root: Path) -> list[Path]:
    """The folders of the hub's cache that a snapshot's links may lead to."""
    for parent in (root, *root.parents):
        if parent.parent.name == "snapshots":
            repository = parent.parent.parent
            return [repository / "blobs", repository.parent / "blobs"]
    return []


def read_json(path: Path, default: Any = None, *, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file; `default`, unless it is None, if the file is missing.

    CheckpointError for a file that is not JSON, is larger than `most_bytes`, nests too deep, or
    holds NaN or half a surrogate pair.
    """
    if default is not None and not path.is_file():
        return default
    try:
        text = read_text(path, most_bytes=most_bytes)
        content = json.loads(text, parse_constant=_constant)
        if re.search(r"\\u[dD]", text):
            json.dumps(content, ensure_ascii=False).encode()  # fails for a lone surrogate
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = "nests too deep" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path} cannot be read: {reason}") from None
    _check_depth(content, path)
    return content


def read_object(
    path: Path, default: Any = None, *, most_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Like `read_json`; CheckpointError if the file holds anything but a JSON object."""
    content = read_json(path, default, most_bytes=most_bytes)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def unsupported(path: Path, key: str, value: Any, instead: str = "") -> CheckpointError:
    """The error for a field of a file. instead: what is supported."""
    end = f": {instead}" if instead else ""
    return CheckpointError(f"{path} says {key} = {str(value)[:80]!r}, which is not supported{end}")


def _constant(name: str) -> float:
    # Infinity is allowed: some state space models have it.
    if name == "NaN":
        raise ValueError("it holds NaN, which is no number")
    return float(name)


def read_text(path: Path, *, most_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a file; CheckpointError if it is not UTF-8 or is larger than `most_bytes`."""
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
    level: list[Any] = [[content]]
    for _ in range(MAX_JSON_DEPTH + 1):
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for part in parts for value in part if isinstance(value, dict | list)]
        if not level:
            return
    raise CheckpointError(f"{path} nests deeper than {MAX_JSON_DEPTH} levels")


def check_folder(folder: Path) -> None:
    """CheckpointError for a link that leads out of the folder, and for a peft adapter beside the
    weights, which would be ignored."""
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
    """Write indented JSON, for people to read."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def new_files(folder: str | Path) -> Iterator[Path]:
    """An empty folder, whose files are moved into `folder` at the end, all or none.

    A link in `folder` is replaced by the file; the link's target is not changed. If new weights are
    written, those of a former model are removed.

    Raises CheckpointError if a link stands where a folder is to be written.
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
    """CheckpointError for a folder with a peft adapter, which would not fit a model saved there."""
    path = Path(folder) / ADAPTER_CONFIG
    if path.exists():
        raise CheckpointError(
            f"{path} is an adapter, which would not belong to the model that is saved: name "
            "another folder"
        )


def follow_umask(folder: Path) -> None:
    """Give the safetensors files of a folder the mode of any new file.

    The safetensors library makes them readable for their owner only.
    """
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
    """The mode that the umask gives. Reading the umask would set it for all threads."""
    handle = folder / ".mode"
    handle.touch()
    try:
        return handle.stat().st_mode & 0o777
    finally:
        handle.unlink()
