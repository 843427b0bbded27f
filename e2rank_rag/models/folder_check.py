"""What a model folder may say, looked at before transformers, tokenizers or peft open it.

A folder may come from a stranger. Its numbers are used and nothing else: no file of it names code,
another model, a file outside, or work without end.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.families import why_unserved
from e2rank_rag.models.minilm import ADAPTED_FOLDER, installed_folder

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

COMPUTED = (
    "position_ids",
    "token_type_ids",
    "inv_freq",
    "masked_bias",
    "attn.bias",
    "attention.bias",
)
"""Ends of the names of tensors in older files that are computed where they are used."""

_PLAIN = ("F64", "F32", "F16", "BF16")
_MOST_TENSORS = 1 << 16
_MOST_OF_A_KIND = 10_000
_LARGEST = 1 << 31
_UNBOUNDED = re.compile(r"theta|max_length$")
_SIZED = re.compile(r"num_|n_|relative_attention_")
_COUNTED = re.compile(r"layers?$|blocks$|labels$|experts$|groups$|^depth$|^n_layer")

# Each lets a config.json say more than sizes: what weights are, where they are, how they are run.
_STEERING = (
    "quantization_config",
    "compression_config",
    "transformers_weights",
    "use_timm_backbone",
    "use_pretrained_backbone",
    "backbone",
    "gguf_file",
)
_IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?$")
_OWN_IMPLEMENTATIONS = (None, "eager", "sdpa")

# Parameters are registered when they are built, when they are loaded and for each name they have.
_BUILT_PER_TENSOR = 8
_FREE_TENSORS = 256
_FREE_VALUES = 1 << 24


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


def check_config(folder: Path) -> None:
    """CheckpointError for a `config.json` that says more than how large the model is."""
    path = folder / "config.json"
    if not path.is_file():
        other = (
            " but an adapter of peft: merge it into its base" * (folder / ADAPTER_CONFIG).is_file()
        )
        raise CheckpointError(
            f"{folder} has no config.json; it is no Hugging Face model folder{other}"
        )
    check_folder(folder)
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} cannot be read: it holds a {type(content).__name__}, not an object"
        )
    reason = why_unserved(content["model_type"]) if "model_type" in content else None
    if reason:
        raise CheckpointError(
            f"{path} cannot be read: model_type is {str(content['model_type'])[:80]!r}, which is "
            f"not served: {reason}"
        )
    kinds = content.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise CheckpointError(f"{path} cannot be read: architectures is {str(kinds)[:80]}")
    for key, value in _entries(content):
        _check_entry(path, key, value)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    parts = content.items() if isinstance(content, dict) else [("", each) for each in content]
    for key, value in parts:
        yield str(key), value
        if isinstance(value, dict | list):
            yield from _entries(value)


def _check_entry(path: Path, key: str, value: Any) -> None:
    if key in _STEERING and value not in (None, False, {}):
        raise CheckpointError(
            f"{path} says {key} = {str(value)[:80]!r}, which is not supported: plain weights in "
            f"{WEIGHTS} are"
        )
    if _IMPLEMENTATION.fullmatch(key) and value not in _OWN_IMPLEMENTATIONS:
        raise CheckpointError(
            f"{path} says {key} = {str(value)[:80]!r}: take it out, and state "
            "attn_implementation when you open the model"
        )
    if isinstance(value, dict | list) and len(value) > _MOST_OF_A_KIND:
        raise CheckpointError(
            f"{path} says {key} of {len(value)} parts; the limit is {_MOST_OF_A_KIND}"
        )
    if isinstance(value, int) and not isinstance(value, bool) and not _UNBOUNDED.search(key):
        limit = _MOST_OF_A_KIND if _COUNTED.search(key) else _LARGEST
        if abs(value) > limit or (value < 0 and _SIZED.match(key)):
            raise CheckpointError(f"{path} says {key} = {value}; the limits are 0 and {limit}")


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from; CheckpointError unless every one is a
    safetensors file in this folder."""
    if (folder / WEIGHTS).is_file():
        return [inside(folder, WEIGHTS)]
    index = folder / INDEX
    if not index.is_file():
        raise CheckpointError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}, so no *.safetensors file; pickled "
            "weights are not read, convert them with "
            "from_pretrained(folder).save_pretrained(new_folder) of their class in transformers"
        )
    content = read_json(inside(folder, INDEX), most_bytes=MAX_TABLE_BYTES)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no weight_map")
    files = []
    for name in sorted({str(shard) for shard in shards.values()}):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name) or not (folder / name).is_file():
            raise CheckpointError(
                f"{index} names the shard {name[:200]!r}: each must be a *.safetensors file in "
                f"{folder}"
            )
        files.append(inside(folder, name))
    return files


def weight_shapes(files: list[Path]) -> dict[str, list[int]]:
    """The shape of each tensor, by name; only the headers are read.

    CheckpointError for too many tensors, and for numbers that are quantised.
    """
    shapes = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                if len(names) > _MOST_TENSORS:
                    raise CheckpointError(f"{len(names)} tensors; the limit is {_MOST_TENSORS}")
                for name in names:
                    part = file.get_slice(name)
                    shapes[name] = part.get_shape()
                    if part.get_dtype() not in _PLAIN and not name.endswith(COMPUTED):
                        raise CheckpointError(
                            f"{name} is in {part.get_dtype()}; plain weights are in one of {_PLAIN}"
                        )
        except Exception as error:
            raise CheckpointError(
                f"the weights in {path.parent} cannot be read: {path.name}: {error}"
            ) from error
    return shapes


@contextmanager
def building(shapes: Mapping[str, list[int]], *, source: Path) -> Iterator[None]:
    """While a model is built in this thread: CheckpointError as soon as it is far larger than its
    weights, which a config.json can ask for in one line."""
    values = sum(_size(shape) for shape in shapes.values())
    most_tensors = _BUILT_PER_TENSOR * len(shapes) + _FREE_TENSORS
    most_values = _BUILT_PER_TENSOR * values + _FREE_VALUES
    here, tensors, total = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, total
        if tensor is None or threading.get_ident() != here:
            return
        tensors, total = tensors + 1, total + tensor.numel()
        if tensors > most_tensors or total > most_values:
            raise CheckpointError(
                f"the config.json of {source} describes a far larger model than its {len(shapes)} "
                f"tensors of {values} numbers are"
            )

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
