"""Listwise adapters: LoRA weights that only listwise prompts go through.

No adapter is switched while serving, because peft switches for all threads at once. Loading makes a
second module with the adapter merged in, which shares every other tensor with the first module.

An adapter's folder may come from a stranger, so peft gets numbers and names of the model's own
modules, never the `adapter_config.json` itself.
"""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.files import inside, read_json, read_object, unsupported, write_json

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The two files that peft writes."""

Name = Annotated[str, Field(pattern=r"^[\w.-]{1,200}$")]
Rank = Annotated[int, Field(strict=True, ge=1, le=65536)]
Scale = Annotated[float, Field(ge=0.0, le=1e6)]


class LoraNumbers(BaseModel):
    """The fields of an `adapter_config.json` that change the merged weights.

    target_modules: the adapted modules; the weights' names state them too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Scale
    target_modules: list[Name] | Name | None = None
    rank_pattern: dict[Name, Rank] = {}
    alpha_pattern: dict[Name, Scale] = {}
    use_rslora: StrictBool = False
    use_dora: StrictBool = False
    fan_in_fan_out: StrictBool = False
    bias: Literal["none"] = "none"
    # Other ways to name the modules, and how the weights were initialised before training.
    layers_to_transform: list[StrictInt] | StrictInt | None = None
    layers_pattern: list[Name] | Name | None = None
    exclude_modules: list[Name] | Name | None = None
    init_lora_weights: StrictBool | Literal["gaussian", "orthogonal"] = True
    megatron_core: Literal["megatron.core"] | None = None


_NO_NUMBERS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
"""Fields that are not read: they are for training and for finding the base."""


def read_adapter(folder: Path) -> LoraNumbers:
    """The adapter's numbers; CheckpointError unless it is a plain LoRA in safetensors."""
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing; an adapter folder holds {' and '.join(ADAPTER_FILES)}"
            )
        inside(folder, name)
    path = folder / ADAPTER_FILES[0]
    content = read_object(path)
    read = {}
    for key, value in content.items():
        if key in LoraNumbers.model_fields:
            read[key] = value
        elif key not in _NO_NUMBERS and value not in (None, False, {}, []):
            raise unsupported(path, key, value, "plain LoRA is")
    try:
        return LoraNumbers.model_validate(read)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][:1]))
        instead = f"{first['msg']}; plain LoRA is"
        raise unsupported(path, field, read.get(field), instead) from None


def copy_adapter(folder: Path, target: Path) -> None:
    """Copy the adapter's two files, and no other file of the folder."""
    read_adapter(folder)
    target.mkdir(exist_ok=True)
    write_json(target / ADAPTER_FILES[0], read_json(folder / ADAPTER_FILES[0]))
    shutil.copyfile(inside(folder, ADAPTER_FILES[1]), target / ADAPTER_FILES[1])


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence peft's warning about a property that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def with_adapter(transformer: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A second module, with the adapter of this folder merged in; `transformer` does not change.

    Raises CheckpointError if the folder has no adapter, or one for another architecture.
    """
    from peft import get_peft_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    numbers = read_adapter(folder)
    tensors = [*transformer.parameters(), *transformer.buffers()]
    twin = copy.deepcopy(transformer, {id(tensor): tensor for tensor in tensors})
    try:
        weights = load_file(folder / ADAPTER_FILES[1])
        options = _lora_config(numbers, _adapted_modules(numbers, weights, twin))
        with quiet_peft():
            adapted = get_peft_model(twin, options)
            report: Any = set_peft_model_state_dict(adapted, weights)
        lacking = [name for name in report.missing_keys if ".lora_" in name]
        if lacking or report.unexpected_keys:
            raise ValueError(f"it lacks {lacking[:1]} and has also {report.unexpected_keys[:1]}")
    except Exception as error:
        raise CheckpointError(
            f"the adapter in {folder} does not fit {type(transformer).__name__}: {error}"
        ) from error
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            # Merging writes in place, and both modules share these tensors.
            base = layer.get_base_layer()
            for name, parameter in list(base.named_parameters(recurse=False)):
                setattr(base, name, nn.Parameter(parameter.detach().clone()))
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True).eval()
    return merged


_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_(embedding_)?[AB]|lora_magnitude_vector)"
    r"(\.weight)?"
)


def _adapted_modules(
    numbers: LoraNumbers, weights: Mapping[str, Tensor], model: nn.Module
) -> list[str]:
    """The names of the adapted modules; ValueError for weights that fit no module of the model."""
    known = dict(model.named_modules())
    modules, ranks = set(), set()
    for name, tensor in weights.items():
        found = _TENSOR.fullmatch(name)
        if found is None or found["module"] not in known:
            raise ValueError(f"there is no place for the tensor {name[:200]}")
        modules.add(found["module"])
        if found["part"].endswith("A"):
            ranks.add(int(tensor.shape[0]))
    stated = [numbers.r, *numbers.rank_pattern.values()]
    if not ranks or max(stated) > max(ranks):
        raise ValueError(f"its configuration states ranks {stated[:9]}, its weights have {ranks}")
    stated_names = numbers.target_modules or []
    names = [stated_names] if isinstance(stated_names, str) else stated_names
    ends = [f".{name}" for name in names if name != "all-linear"]
    if ends and not any(f".{module}".endswith(tuple(ends)) for module in modules):
        raise ValueError(f"none of its target modules {names[:9]} has weights")
    return sorted(modules)


def _lora_config(numbers: LoraNumbers, modules: list[str]) -> Any:
    from peft import LoraConfig

    used: Any = numbers.model_dump(
        include={"r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out"}
    )
    return LoraConfig(
        target_modules=modules,
        # peft reads these names as regular expressions.
        rank_pattern={re.escape(name): rank for name, rank in numbers.rank_pattern.items()},
        alpha_pattern={re.escape(name): alpha for name, alpha in numbers.alpha_pattern.items()},
        inference_mode=True,
        **used,
    )
