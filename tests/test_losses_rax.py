"""Losses against rax, by the authors of RankT5: values and gradients in float64; `make test-rax`.

JAX and rax live in an environment of their own; where they are not installed this is skipped. rax
computes one list at a time here, for it takes some means over the documents or pairs of a batch.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from e2rank_rag.losses import (
    info_nce_loss,
    pointwise_ce_loss,
    poly1_softmax_loss,
    ranknet_loss,
    softmax_ce_loss,
)

jax = pytest.importorskip("jax")
rax = pytest.importorskip("rax")

seeds = pytest.mark.parametrize("seed", range(8))
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def random_lists(seed, *, lists=6, size=9, grades=4):
    """Scores, grades with ties and a mask, under which the last list is all padding."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=3, size=(lists, size))
    labels = rng.integers(grades, size=(lists, size)).astype(float)
    mask = rng.random((lists, size)) < 0.7
    mask[:, 0], mask[-1] = True, False
    return scores, labels, mask


def ours(loss, scores, labels, mask):
    """Value and gradient by scores."""
    scores = torch.tensor(scores, requires_grad=True)
    value = loss(scores, torch.tensor(labels), None if mask is None else torch.tensor(mask))
    return value, *torch.autograd.grad(value, scores)


def theirs(loss, scores, labels, mask, counts):
    """The same of rax, list by list: the mean over those that count, weighted by `counts`."""
    mask = np.ones_like(labels, dtype=bool) if mask is None else mask
    values, slopes = [], []
    for row in range(len(scores)):
        value, slope = jax.value_and_grad(loss)(scores[row], labels[row], where=mask[row])
        values.append(float(value))
        slopes.append(np.asarray(slope))
    total = (np.asarray(counts) != 0).sum()
    values, slopes = np.array(values) * counts, np.stack(slopes) * counts[:, None]
    return torch.tensor(values.sum() / total), torch.tensor(slopes / total)


def has_document(labels, mask):
    return (np.ones_like(labels, dtype=bool) if mask is None else mask).any(1).astype(float)


def has_pair(labels, mask):
    kept = [row if mask is None else row[mask[i]] for i, row in enumerate(labels)]
    return np.array([float(len(set(row)) > 1) for row in kept])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("loss", "reference", "counted"),
    [
        (ranknet_loss, "pairwise_logistic_loss", has_pair),
        (pointwise_ce_loss, "pointwise_sigmoid_loss", has_document),
        (softmax_ce_loss, "softmax_loss", has_document),
    ],
)
@seeds
def test_a_loss_is_the_mean_of_raxs_over_the_lists(loss, reference, counted, masked, seed):
    scores, labels, mask = random_lists(seed)
    mask = mask if masked else None
    counts = counted(labels, mask)
    close(
        ours(loss, scores, labels, mask),
        theirs(getattr(rax, reference), scores, labels, mask, counts),
    )


@seeds
def test_a_batch_of_full_lists_is_what_rax_makes_of_it(seed):
    scores, labels, _ = random_lists(seed)
    permutations = np.argsort(scores[::-1]).astype(float)  # as many pairs in every list
    for loss, reference, graded in (
        (ranknet_loss, rax.pairwise_logistic_loss, permutations),
        (pointwise_ce_loss, rax.pointwise_sigmoid_loss, labels),
        (softmax_ce_loss, rax.softmax_loss, labels),
    ):
        value, slope = jax.value_and_grad(reference)(scores, graded)
        close(
            ours(loss, scores, graded, None),
            (torch.tensor(np.asarray(value)), torch.tensor(np.asarray(slope))),
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 2.5])
@seeds
def test_poly1_is_raxs_for_labels_that_sum_to_one(epsilon, masked, seed):
    scores, labels, mask = random_lists(seed)
    mask = mask if masked else None
    labels[:, 0] += 1
    if mask is not None:
        labels *= mask
    sums = labels.sum(1, keepdims=True)
    labels /= np.where(sums, sums, 1)
    close(
        ours(partial(poly1_softmax_loss, epsilon=epsilon), scores, labels, mask),
        theirs(
            partial(rax.poly1_softmax_loss, epsilon=epsilon),
            scores,
            labels,
            mask,
            has_document(labels, mask),
        ),
    )


@pytest.mark.parametrize("masked", [False, True])
@seeds
def test_poly1_of_other_labels_is_raxs_times_their_sum(masked, seed):
    scores, labels, mask = random_lists(seed)
    mask = mask if masked else None
    labels[:, 0] += 1
    if mask is not None:
        labels *= mask
    sums = labels.sum(1)
    close(
        ours(poly1_softmax_loss, scores, labels, mask),
        theirs(
            rax.poly1_softmax_loss, scores, labels / np.where(sums, sums, 1)[:, None], mask, sums
        ),
    )


@pytest.mark.parametrize("masked", [False, True])
@seeds
def test_info_nce_is_raxs_softmax_over_all_documents(masked, seed):
    rng = np.random.default_rng(seed)
    queries, documents = rng.normal(size=(5, 8)), rng.normal(size=(12, 8))
    positives = rng.integers(12, size=5)
    labels = np.eye(12)[positives]
    mask = (rng.random((5, 12)) < 0.6) | (labels > 0) if masked else None

    def reference(queries, documents):
        return rax.softmax_loss(queries @ documents.T / 0.3, labels, where=mask)

    value, slopes = jax.value_and_grad(reference, argnums=(0, 1))(queries, documents)
    leaves = tuple(torch.tensor(array, requires_grad=True) for array in (queries, documents))
    loss = info_nce_loss(
        *leaves,
        torch.tensor(positives),
        temperature=0.3,
        mask=None if mask is None else torch.tensor(mask),
    )
    close(loss, torch.tensor(np.asarray(value)))
    close(
        torch.autograd.grad(loss, leaves),
        tuple(torch.tensor(np.asarray(slope)) for slope in slopes),
    )
