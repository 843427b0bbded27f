"""The losses of the stages that train on lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from e2rank_rag.losses import (
    info_nce_loss,
    pointwise_ce_loss,
    poly1_softmax_loss,
    ranknet_loss,
    softmax_ce_loss,
)
from e2rank_rag.training.config import ListConfig, RankT5Config

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss of scores, labels and mask, each [B, L]."""

PADDING = -1
"""Fills `repeated` behind shorter lists."""


def list_loss(
    batch: Mapping[str, Any],
    config: ListConfig,
    *,
    queries: Tensor,
    documents: Tensor,
    better: Tensor,
    contextual: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE and RankNet under their weights, and both by name.

    batch: see `lists.scored_tensors`; with `added` [B, L], what the documents' words add to their
        standardised cosines. The vectors have unit length.
    queries [B, D], documents [B, L, D]: the InfoNCE compares each query with all documents of the
        batch.
    better [B, D], contextual [B, L, D]: RankNet orders their cosines, list by list, or the final
        scores with what words add.
    """
    scores = (contextual @ better.unsqueeze(-1)).squeeze(-1)
    if "added" in batch:
        # Detached: a list must not gain by moving its cosines apart until words do not count.
        scores = scores + _deviation(scores.detach(), batch["listed"]) * batch["added"]
    parts = {
        "info_nce": info_nce_loss(
            queries,
            documents.flatten(0, 1),
            batch["positives"],
            temperature=config.info_nce_temperature,
            mask=batch["counted"],
        ),
        "ranknet": ranknet_loss(
            scores / config.ranknet_temperature, batch["relevance"], batch["listed"]
        ),
    }
    loss = config.info_nce_weight * parts["info_nce"] + config.ranknet_weight * parts["ranknet"]
    return loss, {name: part.detach() for name, part in parts.items()}


def _deviation(scores: Tensor, listed: Tensor) -> Tensor:
    """The standard deviation of the listed documents' scores, list by list: [B, L] -> [B, 1]."""
    count = listed.sum(-1, keepdim=True)
    mean = torch.where(listed, scores, 0.0).sum(-1, keepdim=True) / count
    squares = torch.where(listed, (scores - mean) ** 2, 0.0)
    return (squares.sum(-1, keepdim=True) / count).sqrt()


def ranking_loss(config: RankT5Config) -> Loss:
    """The loss of stage `rankt5`.

    For "softmax" and "poly1" the labels of a list are scaled to the sum 1, as the paper's one
    relevant document has it: every list has the same weight, and a grade is a share of it.
    """
    losses: Mapping[str, Loss] = {
        "point_ce": pointwise_ce_loss,
        "pair": ranknet_loss,
        "softmax": _of_shares(softmax_ce_loss),
        "poly1": _of_shares(partial(poly1_softmax_loss, epsilon=config.epsilon)),
    }
    return losses[config.loss]


def scores_loss(scores: Tensor, batch: Mapping[str, Any], loss: Loss) -> Tensor:
    """The loss of a batch of stage `rankt5`; scores [n] are in the order of its chunks."""
    labels, listed = batch["relevance"], batch["listed"]
    table = scores.new_zeros(labels.numel()).index_copy(0, batch["places"], scores)
    table = table.view_as(labels)
    if "repeated" in batch:
        listed = batch["repeated"] != PADDING
        places = batch["repeated"].clamp(min=0)
        table, labels = table.gather(1, places), labels.gather(1, places)
    return loss(table, labels, listed)


def _of_shares(loss: Loss) -> Loss:
    """The same loss with each label as a share of its list's sum; labels below 0 count as 0."""

    def of_shares(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        weights = torch.where(mask, labels.clamp(min=0.0), 0.0)
        total = weights.sum(-1, keepdim=True)
        return loss(scores, weights / torch.where(total > 0, total, 1.0), mask)

    return of_shares
