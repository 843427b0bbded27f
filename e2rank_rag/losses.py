"""Losses: pure functions of tensors.

`info_nce_loss` compares every query with every document. The four others are ranking losses, with
one contract:

    scores  [..., L]  higher means more relevant; the last axis is the list of one query
    labels  [..., L]  any dtype; higher means more relevant, 0 and below is not relevant
    mask    [..., L]  bool, True for a real document, False for padding; None where all are real

    The result is the mean of the losses of the lists that count: lists with a real document, for
    RankNet lists with an ordered pair. If no list counts, the result is 0 with a gradient of 0.
    Values in padding change nothing, not even NaN.

Scores are used as given: divide cosines by the temperature first. A loss is a scalar, float64 for
float64 scores and float32 for all others. Nothing is computed with lower precision, not even under
autocast.
Nothing here waits for the device. Shapes that do not fit raise ValueError.

E2Rank is arXiv 2510.22733, RankT5 is arXiv 2210.10634.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_loss(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean over queries of -log softmax(q . d / temperature) at the positive (E2Rank, eq. 2).

    queries: [Q, D] and documents: [N, D], unit length, so that q . d is the cosine.
    positives: int64 [Q], the index in `documents` of each query's positive.
    temperature: above 0; E2Rank trains with 0.03.
    mask: bool [Q, N], False where a document is left out for a query, because it is a copy of the
        positive or too near to it. A query's positive always counts, even where the mask is False.

    The loss of no queries is 0.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(
            "queries and documents must be [Q, D] and [N, D], got "
            f"{_shape(queries)} and {_shape(documents)}"
        )
    if positives.shape != queries.shape[:1] or positives.dtype != torch.int64:
        raise ValueError(
            f"positives must be int64 {_shape(queries)[:1]}, one index per query, got "
            f"{positives.dtype} {_shape(positives)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    # Autocast would multiply in bfloat16: at temperature 0.03 logits are then off by up to 0.1.
    with torch.autocast(queries.device.type, enabled=False):
        logits = _wide(queries) @ _wide(documents).T / temperature
    index = positives[:, None]
    if mask is not None:
        _check_mask(mask, logits)
        logits = logits.masked_fill(~mask.scatter(1, index, True), float("-inf"))
    # Not cross_entropy, which leaves out a query whose index is -100.
    losses = -logits.log_softmax(dim=1).gather(1, index)
    return losses.sum() / max(len(queries), 1)


def ranknet_loss(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """RankNet: mean of log(1 + e^(s_j - s_i)) over the pairs of a list with labels[i] > labels[j].

    Burges et al. 2005; eq. 3 of E2Rank, Pair of RankT5. Only the order of the labels matters, also
    below 0; equal labels make no pair.

    Eq. 3 is printed with s_i and s_j exchanged, which would teach the opposite order, and as a sum
    over pairs, like in RankT5. E2Rank's released code has the sign used here and takes the mean
    over all pairs of the batch; its weight of 2 beside InfoNCE fits a mean. The two means are equal
    if every list has the same number of pairs.
    """
    scores, labels, mask = _padding_zeroed(scores, labels, mask)
    real = mask[..., :, None] & mask[..., None, :]
    pairs = real & (labels[..., :, None] > labels[..., None, :])
    losses = F.softplus(scores[..., None, :] - scores[..., :, None])
    return _mean(_mean(losses, pairs, dim=(-2, -1)), pairs.any(dim=(-2, -1)))


def pointwise_ce_loss(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """PointCE of RankT5: mean of -y log sigma(s) - (1 - y) log sigma(-s) over a list's documents.

    Labels are clipped to 0..1, so every grade of 1 and above is relevant. RankT5 prints no formula.
    It repeats the relevant documents of a query until they are as many as the others; here that is
    left to the data. rax takes the mean over all documents of the batch, which is the same if all
    lists are equally long.
    """
    scores, labels, mask = _padding_zeroed(scores, labels, mask)
    targets = labels.to(scores.dtype).clamp(0.0, 1.0)
    losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return _mean(_mean(losses, mask, dim=-1), mask.any(-1))


def softmax_ce_loss(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax of RankT5: -sum_j y_j log p_j over a list, with p the softmax of its scores.

    Labels below 0 count as 0. As in RankT5 and rax they are not normalised: a list with doubled
    labels weighs twice, and a list without a relevant document has loss 0 and counts in the mean.
    """
    return poly1_softmax_loss(scores, labels, mask, epsilon=0.0)


def poly1_softmax_loss(
    scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, epsilon: float = 1.0
) -> Tensor:
    """Poly1 of RankT5: sum_j y_j (-log p_j + epsilon (1 - p_j)), with p the softmax of the scores.

    Leng et al. 2022; RankT5 follows them with epsilon = 1. Labels as in `softmax_ce_loss`. rax
    normalises them in the second term only, which is the same if the labels of a list sum to 1.
    """
    scores, labels, mask = _padding_zeroed(scores, labels, mask)
    weights = labels.to(scores.dtype).clamp(min=0.0)
    # Not -inf: the softmax of a list that is all padding would be NaN.
    log_p = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).log_softmax(dim=-1)
    losses = weights * (-log_p - epsilon * log_p.expm1())
    return _mean(losses.sum(-1), mask.any(-1))


def _padding_zeroed(
    scores: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (float32 or float64), labels and mask, [..., L]; the first two are 0 in padding."""
    if scores.ndim == 0 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must both be [..., L], got {_shape(scores)} and {_shape(labels)}"
        )
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    _check_mask(mask, scores)
    # Padding is zeroed first, because NaN or infinity times a gradient of 0 would be NaN.
    return torch.where(mask, _wide(scores), 0.0), torch.where(mask, labels, 0), mask


def _check_mask(mask: Tensor, scores: Tensor) -> None:
    if mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool {_shape(scores)}, got {mask.dtype} {_shape(mask)}")


def _mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of the values where the mask is True; 0 if it is True nowhere."""
    return torch.where(mask, values, 0.0).sum(dim) / mask.sum(dim).clamp(min=1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
