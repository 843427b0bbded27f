"""What a stage-2 step minimises: InfoNCE + RankNet on the vectors of one batch of lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from e2rank_rag.losses import info_nce_loss, ranknet_loss
from e2rank_rag.training.config import ListwiseConfig

Embed = Callable[[Mapping[str, Tensor]], Tensor]
"""Tokens of `tokenization.collate`, [n, L], to unit vectors, float32 [n, D]."""


def listwise_loss(
    embed: Embed, batch: Mapping[str, Any], config: ListwiseConfig, query_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of `ListCollator`, and its parts by name.

    The InfoNCE compares plain queries in joint mode (E2Rank, eq. 2); in adapter mode those are
    frozen, so it compares the vectors that rerank.
    """
    listwise = embed(batch["prompts"])
    joint = "documents" in batch
    queries = embed(batch["queries"]) if joint else batch["query_vectors"]
    documents = embed(batch["documents"]) if joint else batch["document_vectors"].flatten(0, 1)
    better = listwise
    if query_weight > 0.0:
        better = F.normalize(query_weight * queries + (1.0 - query_weight) * listwise, dim=-1)
    if "feedback" in batch:
        better = F.normalize(better + batch["feedback"], dim=-1)
    relevance, listed = batch["relevance"], batch["listed"]
    lists = documents.view(*relevance.shape, -1)
    cosines = (lists @ better.unsqueeze(-1)).squeeze(-1)
    parts = {
        "info_nce": info_nce_loss(
            queries if joint else better,
            documents,
            batch["positives"],
            temperature=config.info_nce_temperature,
            mask=batch["counted"],
        ),
        "ranknet": ranknet_loss(cosines / config.ranknet_temperature, relevance, listed),
    }
    loss = config.info_nce_weight * parts["info_nce"] + config.ranknet_weight * parts["ranknet"]
    return loss, {name: part.detach() for name, part in parts.items()}
