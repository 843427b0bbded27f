"""Checks and loads the safetensors weights of a model folder, and computes their digest."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.config import check_config, read_config
from e2rank_rag.models.files import (
    INDEX,
    MAX_TABLE_BYTES,
    WEIGHTS,
    inside,
    new_files,
    read_json,
    refuse_adapted,
    write_json,
)
from e2rank_rag.models.folders import RECIPE_FILE
from e2rank_rag.prompts import Record

logger = logging.getLogger(__name__)

COMPUTED = (
    "position_ids",
    "token_type_ids",
    "inv_freq",
    "masked_bias",
    "attn.bias",
    "attention.bias",
)
"""Endings of tensor names in older files; models compute these tensors themselves now."""

_PLAIN = ("F64", "F32", "F16", "BF16")
_MOST_TENSORS = 1 << 16

# A parameter is registered when it is built, when it is loaded, and once for each name.
_BUILT_PER_TENSOR = 8
_FREE_TENSORS = 256
_FREE_VALUES = 1 << 24


def load_transformer(
    folder: Path, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> PreTrainedModel:
    """The transformer without its head, on the CPU, in evaluation mode.

    Raises CheckpointError for weights that are missing, incomplete or another architecture's. A
    pooler may be missing, because nothing reads it.
    """
    config = read_config(folder)
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{folder} is an encoder-decoder ({config.model_type}), which gives no vector of a text"
        )
    config.use_cache = False
    transformer, missing = load_weights(
        folder, AutoModel, config, dtype=dtype, attn_implementation=attn_implementation
    )
    missing = [key for key in missing if "pooler" not in key]
    if missing:
        raise CheckpointError(
            f"the weights in {folder} lack {len(missing)} tensors of {type(transformer).__name__}, "
            f"among them {missing[0]}"
        )
    return transformer


def load_weights(
    folder: Path,
    kind: Any,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None,
) -> tuple[PreTrainedModel, list[str]]:
    """A model in evaluation mode, and the sorted names of the tensors that the files lack.

    kind: an auto class or a model class of transformers. CheckpointError for files that cannot be
    read, and for tensors that the model has no place for.
    """
    check_config(folder)
    own = getattr(config, "auto_map", None) or {}
    if any(str(name).startswith("AutoModel") for name in own):
        logger.warning(
            "%s names code of its own (auto_map), which is never run: the model is opened as the "
            "%s of transformers, and its output may differ from the author's",
            folder / "config.json",
            config.model_type,
        )
    shapes = weight_shapes(weight_files(folder))
    try:
        with quiet_transformers(), building(shapes, source=folder):
            model, report = kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the weights in {folder} cannot be read: {error}") from error
    unread = _unread(model, report["unexpected_keys"])
    if unread:
        raise CheckpointError(
            f"the weights in {folder} hold {len(unread)} tensors that the {type(model).__name__} "
            f"of its config.json has no place for, among them {unread[0]}"
        )
    return model.eval(), sorted(report["missing_keys"])


def _unread(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Names of tensors that belong to a part of the model and have no place in it.

    Tensors of a head that the model does not have are left out.
    """
    prefix = f"{model.base_model_prefix}."
    names = (name for name, _ in model.named_modules() if name)
    parts = {name.removeprefix(prefix).split(".")[0] for name in (*names, *model.state_dict())}
    return sorted(
        name
        for name in unexpected
        if name.removeprefix(prefix).split(".")[0] in parts
        and "pooler" not in name
        and not name.endswith(COMPUTED)
    )


def weights_digest(transformer: nn.Module, *, pooler: bool = False) -> str:
    """A hash that identifies the weights: the same for a copy, in float32 and in bfloat16.

    It covers 4096 evenly spread values of each tensor, rounded to bfloat16. Any training step
    changes many of them; to hash all weights of an 8B model would mean reading 16 GB.

    pooler: include the pooler, for a model that reads it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(transformer.state_dict().items()):
        if "pooler" in name and not pooler:
            continue
        flat = tensor.reshape(-1)
        places = torch.linspace(0, len(flat) - 1, min(len(flat), 4096), dtype=torch.float64)
        values = flat[places.round().long()].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and advice; problems are raised as errors here."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from.

    CheckpointError unless each of them is a safetensors file in this folder.
    """
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
    """The shape of each tensor by name; only the files' headers are read.

    CheckpointError for too many tensors and for quantised ones.
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
    """Wraps the building of a model in this thread: CheckpointError if it grows far too large.

    One line of a config.json can describe a model that is much larger than its weights.
    """
    values = sum(map(math.prod, shapes.values()))
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
                f"tensors with {values} numbers are"
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


@contextmanager
def new_model(
    folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Record
) -> Iterator[Path]:
    """`new_files` with the weights, the tokenizer and the recipe; a system adds its own files."""
    refuse_adapted(folder)
    with new_files(folder) as new:
        with quiet_transformers():
            model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_json(new / RECIPE_FILE, recipe.model_dump(mode="json"))
        yield new
