"""What `config.json` and the other small files of a model folder say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from e2rank_rag.errors import CheckpointError

# Families whose position embeddings start behind the pad token's, two rows in.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}


def positions(config: PretrainedConfig) -> int:
    """How many tokens the model can place."""
    return int(getattr(config, "max_position_embeddings", 512)) - first_position(config)


def first_position(config: PretrainedConfig) -> int:
    """The number of the first token's position."""
    return 2 if config.model_type in _OFFSET_POSITIONS else 0


def read_config(folder: Path) -> PretrainedConfig:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; it is no Hugging Face model folder")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    return config


def read_json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, for people to read."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
