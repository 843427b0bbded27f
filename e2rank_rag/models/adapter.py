"""A listwise adapter: LoRA weights that serve listwise prompts, beside document weights that stay.

No adapter is ever switched while serving: peft switches for all threads at once. Loading makes a
second module instead, which shares with the first every tensor that the adapter leaves alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from e2rank_rag.errors import CheckpointError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""As peft writes them."""


def check_adapter(folder: Path) -> None:
    """CheckpointError unless the folder holds an adapter; pickled ones are not read."""
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing; an adapter folder holds {' and '.join(ADAPTER_FILES)}"
            )


@contextmanager
def quiet_peft() -> Iterator[None]:
    """peft reads a property that transformers has renamed; nobody here can mend that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def with_adapter(transformer: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A module with the adapter of this folder merged in; `transformer` is left as it is.

    Raises CheckpointError when the folder has no adapter, or one of another architecture.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    check_adapter(folder)
    tensors = [*transformer.parameters(), *transformer.buffers()]
    twin = copy.deepcopy(transformer, {id(tensor): tensor for tensor in tensors})
    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(twin, str(folder))
    except Exception as error:
        raise CheckpointError(
            f"the adapter in {folder} does not fit {type(transformer).__name__}: {error}"
        ) from error
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            # Merging writes in place, and these tensors are the other module's too.
            base = layer.get_base_layer()
            for name, parameter in list(base.named_parameters(recurse=False)):
                setattr(base, name, nn.Parameter(parameter.detach().clone()))
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True).eval()
    return merged
