"""Which function trains which stage."""

from __future__ import annotations

from pathlib import Path

from e2rank_rag.training.config import (
    ContrastiveConfig,
    ListwiseConfig,
    RankT5Config,
    ResRankConfig,
    StageConfig,
)


def train_stage(config: StageConfig, *, resume: bool = False) -> Path:
    """Train as the configuration says; returns the folder of the model."""
    match config:
        case ContrastiveConfig():
            from e2rank_rag.training.contrastive import train_contrastive

            return train_contrastive(config, resume=resume)
        case ListwiseConfig():
            from e2rank_rag.training.trainer import train_listwise

            return train_listwise(config, resume=resume)
        case ResRankConfig():
            from e2rank_rag.training.resrank import train_resrank

            return train_resrank(config, resume=resume)
        case RankT5Config():
            from e2rank_rag.training.rankt5_trainer import train_rankt5

            return train_rankt5(config, resume=resume)
    raise TypeError(f"{type(config).__name__} is no stage of `config.STAGES`")
