"""Checks a model folder's `config.json`, and says which architectures are served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.files import ADAPTER_CONFIG, WEIGHTS, check_folder, read_object, unsupported
from e2rank_rag.models.folders import T5_FAMILY

_DEPENDS_ON_BATCH = "its vector of a text depends on the padding beside it"
_NEEDS_MORE = "it reads more than tokens"
_UNSERVED = {
    **dict.fromkeys(("convbert", "fnet", "nystromformer", "reformer", "yoso"), _DEPENDS_ON_BATCH),
    **dict.fromkeys(("modernvbert", "perceiver", "tapas", "ultravbert", "xmod"), _NEEDS_MORE),
}

_BEHIND_PAD = {
    *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
}
"""Model types whose first position is one after the pad token's id."""

_UNSTATED = 512
"""Positions of a model whose config.json states none."""

_FEWEST = 16

_MOST_OF_A_KIND = 10_000
_LARGEST = 1 << 31
_UNBOUNDED = re.compile(r"theta|max_length$")
_SIZED = re.compile(r"num_|n_|relative_attention_")
_COUNTED = re.compile(r"layers?$|blocks$|labels$|experts$|groups$|^depth$|^n_layer")

# These fields decide more than sizes: which weights are read, from where, and how they are run.
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

_OUTPUT = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}
"""Output options, used instead of those in config.json; they change no number."""


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration in `config.json`.

    CheckpointError if it decides more than sizes, or describes a model that is not served.
    """
    check_config(folder)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    reason = why_unserved(config.model_type) or why_unusable(config)
    if reason:
        raise CheckpointError(
            f"{folder / 'config.json'} describes a {config.model_type}, which is not served: "
            f"{reason}"
        )
    for name, value in _OUTPUT.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def check_config(folder: Path) -> None:
    """CheckpointError for a `config.json` that decides more than the sizes of the model."""
    path = folder / "config.json"
    if not path.is_file():
        other = (
            " but an adapter of peft: merge it into its base" * (folder / ADAPTER_CONFIG).is_file()
        )
        raise CheckpointError(
            f"{folder} has no config.json; it is no Hugging Face model folder{other}"
        )
    check_folder(folder)
    content = read_object(path)
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
        raise unsupported(path, key, value, f"plain weights in {WEIGHTS} are")
    if _IMPLEMENTATION.fullmatch(key) and value not in _OWN_IMPLEMENTATIONS:
        raise CheckpointError(
            f"{path} says {key} = {str(value)[:80]!r}: take it out, and state "
            "attn_implementation when you open the model"
        )
    if isinstance(value, dict | list) and len(value) > _MOST_OF_A_KIND:
        raise CheckpointError(
            f"{path} says {key} with {len(value)} entries; the limit is {_MOST_OF_A_KIND}"
        )
    if isinstance(value, int) and not isinstance(value, bool) and not _UNBOUNDED.search(key):
        limit = _MOST_OF_A_KIND if _COUNTED.search(key) else _LARGEST
        if abs(value) > limit or (value < 0 and _SIZED.match(key)):
            raise CheckpointError(f"{path} says {key} = {value}; the limits are 0 and {limit}")


def why_unserved(model_type: Any) -> str | None:
    """Why models of this type are not opened; None for those that are."""
    served = (MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, T5_FAMILY)
    if not isinstance(model_type, str) or not any(model_type in names for names in served):
        return "it is no text architecture of transformers"
    return _UNSERVED.get(model_type)


def why_unusable(config: PretrainedConfig) -> str | None:
    """Why a model of a served type is not opened with this configuration; None if it is."""
    if config.model_type in _BEHIND_PAD and config.pad_token_id is None:
        return "its positions begin after pad_token_id, which it does not state"
    sparse = getattr(config, "attention_type", None) == "block_sparse"
    if config.model_type == "big_bird" and sparse:
        return (
            "with block_sparse attention its vectors depend on earlier texts; state "
            'attention_type "original_full"'
        )
    if config.model_type in T5_FAMILY:
        near, far = config.relative_attention_num_buckets, config.relative_attention_max_distance
        if not near // 4 < far:
            return f"it has {near} buckets for distances up to {far}, which are too few"
    if positions(config) < _FEWEST:
        return f"it can place {positions(config)} tokens only"
    return None


def positions(config: PretrainedConfig) -> int:
    """How many tokens the model has positions for."""
    stated = getattr(config, "max_position_embeddings", None) or getattr(
        config, "max_seq_len", None
    )
    # XLNet states -1: it has no limit.
    rows = int(stated) if stated is not None and int(stated) >= 0 else _UNSTATED
    return rows - first_position(config)


def first_position(config: PretrainedConfig) -> int:
    """The position of the first token, which is not 0 in all models."""
    if config.model_type == "mpnet":
        return 2  # whatever its pad token is
    return int(config.pad_token_id) + 1 if config.model_type in _BEHIND_PAD else 0
