"""The stages of training: what each adds to the loop."""

from __future__ import annotations

from typing import Any

from e2rank_rag.training.config import (
    ContrastiveConfig,
    ListwiseConfig,
    RankT5Config,
    ResRankConfig,
    StageConfig,
)
from e2rank_rag.training.stage import Stage
from e2rank_rag.training.stages.contrastive import Contrastive
from e2rank_rag.training.stages.cross_encoder import CrossEncoderStage
from e2rank_rag.training.stages.listwise import Listwise
from e2rank_rag.training.stages.resrank import ResRankStage

_STAGES: dict[type[StageConfig], type[Stage[Any]]] = {
    ContrastiveConfig: Contrastive,
    ListwiseConfig: Listwise,
    ResRankConfig: ResRankStage,
    RankT5Config: CrossEncoderStage,
}


def stage_of(config: StageConfig) -> type[Stage[Any]]:
    """The stage that a configuration is for; TypeError if it is for none."""
    if type(config) not in _STAGES:
        raise TypeError(f"{type(config).__name__} is none of `config.STAGES`")
    return _STAGES[type(config)]
