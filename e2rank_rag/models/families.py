"""Which architectures are served, and how many tokens each can place."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

T5_FAMILY = ("t5", "mt5", "umt5")

_DEPENDS_ON_BATCH = "its vector of a text depends on the padding beside it"
_NEEDS_MORE = "it reads more than tokens"
_UNSERVED = {
    "convbert": _DEPENDS_ON_BATCH,
    "fnet": _DEPENDS_ON_BATCH,
    "nystromformer": _DEPENDS_ON_BATCH,
    "reformer": _DEPENDS_ON_BATCH,
    "yoso": _DEPENDS_ON_BATCH,
    "modernvbert": _NEEDS_MORE,
    "perceiver": _NEEDS_MORE,
    "tapas": _NEEDS_MORE,
    "ultravbert": _NEEDS_MORE,
    "xmod": _NEEDS_MORE,
}

_BEHIND_PAD = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "longformer",
        "luke",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)
"""Families whose first token has the position behind that of the pad token."""

_UNSTATED = 512
_FEWEST = 16


def why_unserved(model_type: Any) -> str | None:
    """Why models of this type are not opened; None for those that are."""
    served = (MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, T5_FAMILY)
    if not isinstance(model_type, str) or not any(model_type in names for names in served):
        return "it is no architecture of transformers for text"
    return _UNSERVED.get(model_type)


def why_unusable(config: PretrainedConfig) -> str | None:
    """Why a model of a served type, so configured, is not opened; None for one that is."""
    if config.model_type in _BEHIND_PAD and config.pad_token_id is None:
        return "its positions begin behind pad_token_id, which it does not state"
    sparse = getattr(config, "attention_type", None) == "block_sparse"
    if config.model_type == "big_bird" and sparse:
        return (
            "with block_sparse attention its vectors depend on the texts before; state "
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
    """How many tokens the model can place."""
    stated = getattr(config, "max_position_embeddings", None) or getattr(
        config, "max_seq_len", None
    )
    # XLNet states -1: it places any number.
    rows = int(stated) if stated is not None and int(stated) >= 0 else _UNSTATED
    return rows - first_position(config)


def first_position(config: PretrainedConfig) -> int:
    """The number of the first token's position."""
    if config.model_type == "mpnet":
        return 2  # whatever its pad token is
    return int(config.pad_token_id) + 1 if config.model_type in _BEHIND_PAD else 0
