"""What `config.json` and the other small files of a model folder say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.families import why_unserved, why_unusable
from e2rank_rag.models.folder_check import check_config

_OUTPUT = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}
"""How a model answers, whatever its config.json says of it: the numbers are the same."""


def read_config(folder: Path) -> PretrainedConfig:
    """CheckpointError for one that says more than how large the model is, and for one of a family
    that is not served."""
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
            f"{folder / 'config.json'} is that of a {config.model_type}, which is not served: "
            f"{reason}"
        )
    for name, value in _OUTPUT.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, for people to read."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
