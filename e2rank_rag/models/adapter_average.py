"""The mean of listwise adapters of one base: of several training runs, or of one at half strength.

The changes that adapters make to the weights are averaged, not their matrices: the matrices of two
training runs have nothing in common. The mean of changes B A is again a LoRA, exactly: of all A one
below the other and all B side by side. Its rank is the sum of the ranks. It costs nothing in
serving, where adapters are merged into the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.adapter import ADAPTER_FILES, LoraNumbers, read_adapter
from e2rank_rag.models.e2rank_folder import ADAPTER_FOLDER
from e2rank_rag.models.files import inside, new_files, read_json, unsupported, write_json
from e2rank_rag.models.folders import (
    RECIPE_FILE,
    name_beside,
    name_of_base,
    read_recipe_file,
    read_system,
    resolve_folder,
)
from e2rank_rag.recipe import AdapterOf, Recipe

NOT_AVERAGED = ("use_dora", "rank_pattern", "alpha_pattern")
"""Fields of `LoraNumbers` with which an adapter is more than one B A with one scale."""

_MATRIX = re.compile(r"(.+\.lora_(?:embedding_)?)([AB])((?:\.weight)?)")


class _Adapted(NamedTuple):
    """An open adapter. weights: its matrices by name; `scale` times B A is what they change."""

    folder: Path
    recipe: Recipe
    base: AdapterOf
    weights: dict[str, Tensor]
    rank: int
    scale: float


def average_adapters(
    models: Sequence[str | Path], output: str | Path, *, scale: float = 1.0
) -> Path:
    """Write a model whose adapter is the mean of those of `models`, times `scale`.

    models: folders, hub ids or shipped names of models with a listwise adapter for the same base.
        One alone is scaled. The new model has the recipe of the first.
    output: the new folder; it names the base, whose weights are not copied.
    scale: 0 or more; 1 is the mean itself, 0 the base without an adapter.

    Raises ValueError for no models, an impossible scale, and adapters of different bases or layers;
    CheckpointError for a model without an adapter, and for one that is not plain LoRA.
    """
    if not models:
        raise ValueError("there are no adapters to average: name at least one model")
    if not (math.isfinite(scale) and scale >= 0.0):
        raise ValueError(f"scale must be 0 or more and finite, got {scale}")
    adapted = [_read(model) for model in models]
    first = adapted[0]
    for each in adapted[1:]:
        _check_alike(first, each)
    output = Path(output)
    if any(output.resolve() == each.folder.resolve() for each in adapted):
        raise ValueError(f"{output} is one of the models to average: name another folder")
    rank = sum(each.rank for each in adapted)
    config = read_json(first.folder / ADAPTER_FOLDER / ADAPTER_FILES[0])
    base = name_beside(name_of_base(first.base.base, first.folder), output)
    config |= {
        "r": rank,
        "lora_alpha": rank,  # the scales are in the matrices
        "use_rslora": False,
        "base_model_name_or_path": base,
    }
    recipe = first.recipe.model_copy(
        update={"adapter": AdapterOf(base=base, digest=first.base.digest)}
    )
    with new_files(output) as new:
        target = new / ADAPTER_FOLDER
        target.mkdir()
        write_json(target / ADAPTER_FILES[0], config)
        save_file(_mean(adapted, scale), target / ADAPTER_FILES[1])
        write_json(new / RECIPE_FILE, recipe.model_dump(mode="json"))
    return output


def _read(model: str | Path) -> _Adapted:
    folder = resolve_folder(model)
    recipe = None
    if read_system(folder) == "e2rank":
        recipe = read_recipe_file(folder / RECIPE_FILE, Recipe)
    if recipe is None or recipe.adapter is None:
        raise CheckpointError(f"{model} has no listwise adapter: name a model that has one")
    place = inside(folder, ADAPTER_FOLDER)
    numbers = read_adapter(place)
    for field in NOT_AVERAGED:
        if value := getattr(numbers, field):
            instead = "only adapters of one rank and one alpha are averaged"
            raise unsupported(place / ADAPTER_FILES[0], field, value, instead)
    weights = load_file(place / ADAPTER_FILES[1])
    _check_matrices(weights, numbers, place / ADAPTER_FILES[1])
    divisor = math.sqrt(numbers.r) if numbers.use_rslora else numbers.r
    factor = numbers.lora_alpha / divisor
    return _Adapted(folder, recipe, recipe.adapter, weights, numbers.r, factor)


def _check_matrices(weights: dict[str, Tensor], numbers: LoraNumbers, path: Path) -> None:
    """CheckpointError unless the weights are pairs of matrices of the stated rank."""
    if not weights:
        raise CheckpointError(f"{path} holds no matrices")
    for name, tensor in weights.items():
        found = _MATRIX.fullmatch(name)
        fits = found is not None and tensor.ndim >= 2
        if found is not None and fits:
            other = f"{found[1]}{'B' if _is_a(name) else 'A'}{found[3]}"
            fits = other in weights and tensor.shape[_axis(name)] == numbers.r
        if not fits:
            raise CheckpointError(
                f"{path} is no plain LoRA of rank {numbers.r}: see its tensor {name[:200]}"
            )


def _check_alike(first: _Adapted, other: _Adapted) -> None:
    if first.base.digest != other.base.digest:
        raise ValueError(
            f"{first.folder} and {other.folder} are adapters for different weights "
            f"({first.base.base!r} and {other.base.base!r}): only those of one base have a mean"
        )
    different = sorted(first.weights.keys() ^ other.weights.keys())
    if different:
        raise ValueError(
            f"{first.folder} and {other.folder} adapt different layers, such as {different[0]}: "
            "only adapters of the same layers have a mean"
        )


def _mean(adapted: Sequence[_Adapted], scale: float) -> dict[str, Tensor]:
    """The matrices of one LoRA with scale 1 that changes weights by the mean, times `scale`."""
    mean = {}
    for name in adapted[0].weights:
        if _is_a(name):
            parts = [each.weights[name].float() for each in adapted]
        else:
            factors = [scale * each.scale / len(adapted) for each in adapted]
            parts = [
                factor * each.weights[name].float()
                for factor, each in zip(factors, adapted, strict=True)
            ]
        mean[name] = torch.cat(parts, dim=_axis(name)).contiguous()
    return mean


def _is_a(name: str) -> bool:
    found = _MATRIX.fullmatch(name)
    return found is not None and found[2] == "A"


def _axis(name: str) -> int:
    """The axis of a matrix that is as long as the rank."""
    return 0 if _is_a(name) else 1
