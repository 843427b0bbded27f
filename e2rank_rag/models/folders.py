"""Which folder a model's name means, and which system the folder holds.

A `Path` is always a folder. A string is the name of a model that ships with this package, else a
folder, else an id of the model hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.files import read_json, read_object
from e2rank_rag.models.shipped import (
    ADAPTED_FOLDER,
    DEFAULT_MODEL,
    SHIPPED_MODELS,
    installed_folder,
    minilm_folder,
)

System = Literal["e2rank", "resrank", "rankt5"]
"""What a model folder holds, as `e2rank.json` names it: an encoder (E2Rank), an encoder with a
reranker of its vectors (ResRank), or a cross-encoder, which scores pairs ("rankt5")."""

RECIPE_FILE = "e2rank.json"

T5_FAMILY = ("t5", "mt5", "umt5")

_MODEL_FILES = (RECIPE_FILE, "config.json", "modules.json")


class FoundModel(NamedTuple):
    """Where a model is.

    name: finds the model again from any working directory: a shipped name, an absolute path, or a
        hub id.
    folder: the folder with its files.
    """

    name: str
    folder: Path


def model_name(model: str | Path) -> str:
    """The model as a string. A relative `Path` gets "./" in front, so that it stays a path.

    TypeError for anything but a string or a path.
    """
    if isinstance(model, str):
        return model
    if not isinstance(model, os.PathLike):
        raise TypeError(f"a model is named by a string or a path, not by a {type(model).__name__}")
    path = str(Path(model))
    return path if _is_path(path) else os.path.join(".", path)


def find_model(
    model: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> FoundModel:
    """Find a shipped model or a local folder, or fetch a hub id into the hub's cache.

    Raises CheckpointError if there is none, and for a string that names both a shipped model and a
    model folder in the working directory.
    """
    name = model_name(model)
    if not name.strip():
        raise CheckpointError("the name of the model is empty: give a folder or a hub id")
    if name in SHIPPED_MODELS:
        folder = _shipped_folder(name)
        _refuse_namesake(name, folder)
        return FoundModel(name, folder)
    folder = _expanded(name)
    if folder.is_dir():
        return FoundModel(_shipped_name(folder) or str(folder.resolve()), folder)
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; name the folder that holds the model")
    if _is_path(name):
        raise CheckpointError(f"there is no model folder {folder}")
    return FoundModel(name, _from_hub(name, revision, local_files_only))


def resolve_folder(
    model: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """The folder that `find_model` finds."""
    return find_model(model, revision=revision, local_files_only=local_files_only).folder


def name_beside(model: str, folder: Path) -> str:
    """How the model folder `folder` refers to another model, whose name `find_model` gave.

    A path becomes relative to `folder`, so that both can be moved together. It stays absolute if
    the two share only the root of the disk.
    """
    if not os.path.isabs(model):
        return model
    here = folder.resolve()
    try:
        common = os.path.commonpath([model, here])
    except ValueError:  # two drives
        return model
    if common == Path(model).anchor:
        return model
    relative = Path(os.path.relpath(model, here)).as_posix()
    return relative if relative.startswith(".") else f"./{relative}"


def name_of_base(base: str, folder: Path) -> str:
    """The reverse of `name_beside`: the name by which `find_model` finds the `base` of `folder`."""
    here = folder.resolve()
    if base in SHIPPED_MODELS or not (_is_path(base) or (here / base).is_dir()):
        return base
    return os.path.normpath(here / _expanded(base))


def find_base(base: str, folder: Path, *, local_files_only: bool = False) -> Path:
    """The folder of the model that the `e2rank.json` of `folder` names as `base`.

    Raises CheckpointError if it is missing, with the way to a copy that needs no other folder.
    """
    if base in SHIPPED_MODELS:
        return _shipped_folder(base)
    name = name_of_base(base, folder)
    if os.path.isabs(name) and not Path(name).is_dir():
        raise CheckpointError(
            f"{folder} needs the model that it was trained on, {base!r}, and there is no folder "
            f"{name}: put that model there, or write its path into {folder / 'e2rank.json'} as "
            f'"base" (a relative one counts from {folder}). To make a copy that needs no other '
            "folder, open the model where both are and call its save(NEW_FOLDER)"
        )
    return resolve_folder(name, local_files_only=local_files_only)


def _is_path(name: str) -> bool:
    """Whether a string is a path, because it cannot be a hub id."""
    return os.path.isabs(name) or name.startswith((".", "~")) or "\\" in name or name.endswith("/")


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"there is no model folder {name}: {error}") from error


def _shipped_folder(name: str) -> Path:
    return ADAPTED_FOLDER if name == DEFAULT_MODEL else minilm_folder()


def _shipped_name(folder: Path) -> str | None:
    """The name of the shipped model in this folder; None for any other folder."""
    places = {DEFAULT_MODEL: ADAPTED_FOLDER, "minilm": installed_folder()}
    for name, place in places.items():
        if place is not None and place.is_dir() and folder.samefile(place):
            return name
    return None


def _refuse_namesake(name: str, shipped: Path) -> None:
    here = Path(name)
    if not any((here / file).is_file() for file in _MODEL_FILES) or here.samefile(shipped):
        return
    raise CheckpointError(
        f"{name!r} is a model that ships with e2rank-rag, and {here.resolve()} is another one: "
        f"write './{name}' for the folder; for the shipped model rename the folder, or work in "
        "another directory"
    )


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
            )
        )
    except HFValidationError:
        raise CheckpointError(f"there is no model folder {name}, and it is no hub id") from None
    except Exception as error:
        raise CheckpointError(
            f"there is no model folder {name}, and the hub has not given {name!r} either: {error}"
        ) from error


def read_system(folder: Path) -> System | None:
    """The system that the folder's `e2rank.json` states; None if there is no such file."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    system = content.get("system", "e2rank") if isinstance(content, dict) else content
    if system not in get_args(System):
        raise CheckpointError(f"{path}: system is {system!r}, not one of {list(get_args(System))}")
    found: System = system
    return found


def system_of(
    model: str | Path,
    system: System | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> System:
    """Which system a model folder or hub id holds.

    Its `e2rank.json` decides; without one the caller's `system`, then `config.json`: a
    sequence classifier with one label or a T5 is a cross-encoder ("rankt5"), and everything else
    is opened as an E2Rank encoder.

    Raises CheckpointError for a model that is not there and for a classifier with several labels,
    ValueError for an unknown `system` and for one that contradicts `e2rank.json`.
    """
    if system is not None and system not in get_args(System):
        raise ValueError(f"system must be one of {list(get_args(System))}, got {system!r}")
    folder = resolve_folder(model, revision=revision, local_files_only=local_files_only)
    found = read_system(folder)
    if system is not None and found not in (None, system):
        raise ValueError(f"{model} says that it is {found!r}, not {system!r}: leave system out")
    return found or system or _system_by_config(folder)


def _system_by_config(folder: Path) -> System:
    modules = read_json(folder / "modules.json", default=[])
    if isinstance(modules, list) and len(modules) > 1:
        return "e2rank"  # sentence-transformers: a transformer and its pooling, so an encoder
    path = folder / "config.json"
    config = read_object(path, default={})
    if config.get("model_type") in T5_FAMILY:
        return "rankt5"
    kinds = config.get("architectures")
    kinds = kinds if isinstance(kinds, list) else []
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        return "e2rank"
    # As transformers counts labels: two where the file does not say.
    labels = config.get("id2label") or config.get("num_labels", 2)
    count = len(labels) if isinstance(labels, dict) else labels
    if count != 1:
        raise CheckpointError(
            f"{path} describes a classifier with {str(count)[:20]} labels, and a cross-encoder has "
            'one: to open the model as an encoder, state system="e2rank", pooling and prompts'
        )
    return "rankt5"


R = TypeVar("R", bound=BaseModel)


def read_recipe_file(path: Path, kind: type[R]) -> R:
    """The recipe in this file; CheckpointError if this version cannot read it."""
    try:
        return kind.model_validate(read_json(path))
    except (ValidationError, CheckpointError) as error:
        raise CheckpointError(f"{path} is not a recipe this version reads: {error}") from error
