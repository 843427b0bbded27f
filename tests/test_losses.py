"""Losses: by hand, by double loops in float64, and the properties that all of them have."""

from __future__ import annotations

from functools import partial
from math import exp, log, log1p

import pytest
import torch

from e2rank_rag.losses import (
    pointwise_ce_loss,
    poly1_softmax_loss,
    ranknet_loss,
    softmax_ce_loss,
)

float64 = partial(torch.tensor, dtype=torch.float64)

POLY1 = partial(poly1_softmax_loss, epsilon=0.7)
LOSSES = {
    "ranknet": ranknet_loss,
    "pointwise": pointwise_ce_loss,
    "softmax": softmax_ce_loss,
    "poly1": poly1_softmax_loss,
    "poly1 of 0.7": POLY1,
}
every_loss = pytest.mark.parametrize("loss", list(LOSSES.values()), ids=list(LOSSES))
shift_invariant = pytest.mark.parametrize(
    "loss", [ranknet_loss, softmax_ce_loss, poly1_softmax_loss]
)
seeds = pytest.mark.parametrize("seed", range(4))


def random_lists(seed, shape=(5, 7)):
    """Scores, graded labels with ties, and a mask that leaves some lists empty."""
    torch.manual_seed(seed)
    scores = torch.randn(shape, dtype=torch.float64) * 3
    labels = torch.randint(-1, 4, shape).double()
    mask = torch.rand(shape) < 0.7
    mask[seed % shape[0]] = False
    return scores, labels, mask


# The definitions, in loops over Python's floats


def sigmoid_ce(score, label):
    """-log sigma(score) for label 1, -log sigma(-score) for label 0."""
    return label * log1p(exp(-score)) + (1 - label) * log1p(exp(score))


def ranknet_of_list(scores, labels):
    pairs = [
        log1p(exp(-(s_i - s_j)))
        for s_i, y_i in zip(scores, labels, strict=True)
        for s_j, y_j in zip(scores, labels, strict=True)
        if y_i > y_j
    ]
    return sum(pairs) / len(pairs) if pairs else None


def pointwise_of_list(scores, labels):
    values = [sigmoid_ce(s, min(max(y, 0), 1)) for s, y in zip(scores, labels, strict=True)]
    return sum(values) / len(values)


def poly1_of_list(scores, labels, epsilon):
    total = sum(exp(s) for s in scores)
    return sum(
        max(y, 0) * (-log(exp(s) / total) + epsilon * (1 - exp(s) / total))
        for s, y in zip(scores, labels, strict=True)
    )


OF_LIST = {
    ranknet_loss: ranknet_of_list,
    pointwise_ce_loss: pointwise_of_list,
    softmax_ce_loss: partial(poly1_of_list, epsilon=0.0),
    poly1_softmax_loss: partial(poly1_of_list, epsilon=1.0),
    POLY1: partial(poly1_of_list, epsilon=0.7),
}


def by_loops(loss, scores, labels, mask):
    values = []
    for row, real in enumerate(mask.tolist()):
        places = [place for place, kept in enumerate(real) if kept]
        if places:
            row_scores, row_labels = scores[row].tolist(), labels[row].tolist()
            values.append(
                OF_LIST[loss]([row_scores[i] for i in places], [row_labels[i] for i in places])
            )
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else 0.0


# By hand


def test_ranknet_of_three_documents_is_the_mean_over_three_pairs():
    scores, labels = float64([1.0, 3.0, 2.0]), torch.tensor([2, 1, 0])
    expected = (log(1 + exp(3 - 1)) + log(1 + exp(2 - 1)) + log(1 + exp(2 - 3))) / 3
    assert ranknet_loss(scores, labels).item() == pytest.approx(expected, rel=1e-12)


def test_ranknet_is_the_mean_over_lists_of_the_mean_over_pairs():
    scores = float64([[1.0, 0.0, 5.0], [0.0, 2.0, 4.0], [9.0, 8.0, 7.0]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [2, 2, 2]])
    first = (log(1 + exp(0 - 1)) + log(1 + exp(5 - 1))) / 2
    second = (log(1 + exp(0 - 2)) + log(1 + exp(0 - 4))) / 2
    # The third list has ties only, and no part in the mean.
    assert ranknet_loss(scores, labels).item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_ranknet_reads_only_the_order_of_the_labels():
    scores, labels, mask = random_lists(0)
    assert ranknet_loss(scores, labels**3 + 5, mask) == ranknet_loss(scores, labels, mask)


def test_ranknet_teaches_the_order_of_the_labels():
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ranknet_loss(scores, torch.tensor([0.0, 2.0, 1.0])).backward()
    # At equal scores each of the 3 pairs pulls with 1/2: the best up twice, the worst down twice.
    assert scores.grad.tolist() == pytest.approx([1 / 3, -1 / 3, 0.0], abs=1e-15)


def test_pointwise_is_the_mean_over_lists_of_the_mean_over_documents():
    scores = float64([[2.0, -1.0], [0.5, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    first = (log(1 + exp(-2)) + log(1 + exp(-1))) / 2
    second = log(1 + exp(-0.5))
    value = pointwise_ce_loss(scores, torch.tensor([[1, 0], [1, 1]]), mask)
    assert value.item() == pytest.approx((first + second) / 2, rel=1e-12)


@pytest.mark.parametrize(("grade", "target"), [(3, 1), (1, 1), (0.25, 0.25), (0, 0), (-2, 0)])
def test_pointwise_takes_grades_of_one_and_above_as_relevant(grade, target):
    value = pointwise_ce_loss(float64([0.3]), torch.tensor([grade]))
    assert value.item() == pytest.approx(sigmoid_ce(0.3, target), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_softmax_of_equal_scores_is_the_log_of_the_list_size(size):
    labels = torch.zeros(size).double()
    labels[size // 2] = 1
    value = softmax_ce_loss(torch.full((size,), 4.2).double(), labels)
    assert value.item() == pytest.approx(log(size), abs=1e-12)


def test_softmax_weighs_a_document_by_its_label():
    total = exp(1) + exp(2) + exp(0)
    expected = -3 * log(exp(1) / total) - 1 * log(exp(0) / total)
    value = softmax_ce_loss(float64([1.0, 2.0, 0.0]), torch.tensor([3, 0, 1]))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_softmax_counts_a_list_without_a_relevant_document_as_zero():
    scores = torch.zeros(2, 4).double()
    labels = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]])
    assert softmax_ce_loss(scores, labels).item() == pytest.approx(log(4) / 2, rel=1e-12)


@pytest.mark.parametrize("loss", [softmax_ce_loss, poly1_softmax_loss])
def test_a_label_below_zero_weighs_nothing(loss):
    scores = float64([1.0, 2.0, 0.0])
    assert loss(scores, torch.tensor([1, -3, 0])) == loss(scores, torch.tensor([1, 0, 0]))


def test_poly1_adds_epsilon_times_what_the_softmax_lacks():
    p = exp(1) / (exp(1) + exp(2))
    scores, labels = float64([1.0, 2.0]), torch.tensor([1, 0])
    for epsilon in (0.0, 1.0, 2.5):
        value = poly1_softmax_loss(scores, labels, epsilon=epsilon)
        assert value.item() == pytest.approx(-log(p) + epsilon * (1 - p), rel=1e-12)
    assert poly1_softmax_loss(scores, labels) == poly1_softmax_loss(scores, labels, epsilon=1.0)


# By loops


@seeds
@every_loss
def test_a_ranking_loss_agrees_with_its_definition_in_loops(loss, seed):
    scores, labels, mask = random_lists(seed)
    whole = torch.ones_like(mask)
    expected = by_loops(loss, scores, labels, mask)
    assert loss(scores, labels, mask).item() == pytest.approx(expected, rel=1e-10)
    assert loss(scores, labels).item() == pytest.approx(
        by_loops(loss, scores, labels, whole), rel=1e-10
    )


# What all ranking losses have


@seeds
@every_loss
def test_the_order_of_a_list_does_not_matter(loss, seed):
    scores, labels, mask = random_lists(seed)
    order = torch.randperm(scores.shape[1])
    shuffled = loss(scores[:, order], labels[:, order], mask[:, order])
    torch.testing.assert_close(shuffled, loss(scores, labels, mask), rtol=1e-12, atol=0)


@seeds
@shift_invariant
def test_a_shift_of_all_scores_of_a_list_does_not_matter(loss, seed):
    scores, labels, mask = random_lists(seed)
    shifted = scores + torch.randn(len(scores), 1, dtype=torch.float64) * 50
    torch.testing.assert_close(loss(shifted, labels, mask), loss(scores, labels, mask))


def test_for_the_pointwise_loss_zero_means_even_odds():
    scores, labels = torch.zeros(4), torch.tensor([1, 0, 0, 1])
    assert pointwise_ce_loss(scores, labels).item() == pytest.approx(log(2))
    assert pointwise_ce_loss(scores + 1, labels) > pointwise_ce_loss(scores, labels)


@every_loss
def test_the_right_order_costs_less_than_the_reverse(loss):
    labels = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert loss(labels, labels) < loss(labels.flip(0), labels)


@seeds
@every_loss
def test_a_step_down_the_gradient_lowers_the_loss(loss, seed):
    scores, labels, mask = random_lists(seed)
    scores.requires_grad_()
    before = loss(scores, labels, mask)
    (slope,) = torch.autograd.grad(before, scores)
    assert loss(scores - 0.05 * slope, labels, mask) < before


@seeds
@every_loss
def test_the_gradient_is_that_of_the_value(loss, seed):
    scores, labels, mask = random_lists(seed, (3, 4))
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, labels, mask), scores)


@seeds
@every_loss
def test_more_leading_axes_are_more_lists(loss, seed):
    scores, labels, mask = random_lists(seed, (6, 7))
    flat = loss(scores, labels, mask)
    folded = loss(*(tensor.reshape(2, 1, 3, 7) for tensor in (scores, labels, mask)))
    torch.testing.assert_close(folded, flat, rtol=1e-12, atol=0)
    assert folded.shape == flat.shape == ()


@every_loss
def test_a_list_may_come_without_a_batch(loss):
    scores, labels, mask = random_lists(3)
    assert loss(scores[0], labels[0], mask[0]) == loss(scores[:1], labels[:1], mask[:1])


# Masks


@seeds
@every_loss
def test_a_mask_is_as_good_as_removal(loss, seed):
    scores, labels, _ = random_lists(seed)
    mask = torch.ones_like(scores, dtype=torch.bool)
    mask[:, [1, 4]] = False
    kept = [0, 2, 3, 5, 6]
    torch.testing.assert_close(
        loss(scores, labels, mask), loss(scores[:, kept], labels[:, kept]), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("junk", [1e4, -1e4, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_loss
def test_what_padding_holds_changes_neither_value_nor_gradient(loss, dtype, junk):
    scores, labels, mask = random_lists(5)
    scores = scores.to(dtype)
    clean = scores.clone().requires_grad_()
    dirty = scores.masked_fill(~mask, junk).requires_grad_()
    value = loss(clean, labels, mask)
    assert torch.equal(loss(dirty, labels.masked_fill(~mask, junk), mask), value)
    value.backward()
    loss(dirty, labels.masked_fill(~mask, junk), mask).backward()
    assert torch.equal(dirty.grad, clean.grad)
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~mask] == 0).all()
    assert dirty.grad.any()


@seeds
@every_loss
def test_a_list_that_is_all_padding_counts_for_nothing(loss, seed):
    scores, labels, mask = random_lists(seed)
    real = mask.any(1)
    assert not real.all()
    without = loss(scores[real], labels[real], mask[real])
    torch.testing.assert_close(loss(scores, labels, mask), without, rtol=1e-12, atol=0)


def empty_cases():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    for name, loss in LOSSES.items():
        yield pytest.param(loss, labels, nothing, id=f"{name}: all padding")
        yield pytest.param(loss, labels[:0], nothing[:0], id=f"{name}: no lists")
        yield pytest.param(loss, labels[:, :0], nothing[:, :0], id=f"{name}: no documents")
    for ties in (0.0, 2.0):
        yield pytest.param(ranknet_loss, labels * 0 + ties, None, id=f"no pair, all {ties}")
    yield pytest.param(ranknet_loss, labels[:, :1], None, id="no pair, one document")
    yield pytest.param(softmax_ce_loss, labels * 0, None, id="softmax: nothing relevant")
    yield pytest.param(poly1_softmax_loss, labels * 0, None, id="poly1: nothing relevant")
    yield pytest.param(softmax_ce_loss, labels[1:, 1:2], None, id="softmax: one document")


@pytest.mark.parametrize(("loss", "labels", "mask"), list(empty_cases()))
def test_nothing_to_learn_from_is_zero_with_a_gradient_of_zero(loss, labels, mask):
    scores = torch.full_like(labels, 5.0).requires_grad_()
    value = loss(scores, labels, mask)
    assert value.item() == 0
    value.backward()
    assert (scores.grad == 0).all()


# Numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every_loss
def test_scores_of_ten_thousand_have_finite_losses_and_gradients(loss, dtype):
    scores = torch.tensor([[1e4, -1e4, 0.0, 1e4]] * 3, dtype=dtype, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 0, 0]])
    value = loss(scores, labels)
    value.backward()
    assert value.isfinite()
    assert scores.grad.isfinite().all()


@every_loss
def test_a_loss_grows_with_a_wrong_score_without_bound(loss):
    wrong = torch.tensor([0.0, 1e4])
    assert loss(wrong, torch.tensor([1.0, 0.0])).item() == pytest.approx(
        {pointwise_ce_loss: (log(2) + 1e4) / 2, poly1_softmax_loss: 1e4 + 1, POLY1: 1e4 + 0.7}.get(
            loss, 1e4
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_loss
def test_narrow_scores_are_computed_in_float32(loss, dtype):
    scores, labels, mask = random_lists(6)
    narrow = scores.to(dtype)
    value = loss(narrow, labels, mask)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(narrow.double(), labels, mask).float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.float64])
@every_loss
def test_labels_may_have_any_dtype(loss, dtype):
    scores, labels, mask = random_lists(1)
    assert loss(scores, labels.to(dtype), mask) == loss(scores, labels, mask)


@every_loss
def test_inputs_are_not_changed(loss):
    given = random_lists(2)
    copies = [tensor.clone() for tensor in given]
    loss(*given)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies, strict=True))


@every_loss
def test_autocast_changes_nothing(loss):
    scores, labels, mask = random_lists(4)
    scores = scores.float()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(scores, labels, mask)
    assert torch.equal(value, loss(scores, labels, mask))


# vmap refuses whatever reads a value back from the device: `.item()`, `if tensor`, `tensor[mask]`.
@every_loss
def test_no_ranking_loss_waits_for_the_device(loss):
    given = random_lists(4)
    expected = torch.stack([loss(*row) for row in zip(*given, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(*given), expected)


# Refusals


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ((2, 3), (2, 4), r"both be \[..., L\], got \[2, 3\] and \[2, 4\]"),
        ((2, 3), (3,), r"got \[2, 3\] and \[3\]"),
        ((2, 3), (2, 3, 1), r"got \[2, 3\] and \[2, 3, 1\]"),
        ((), (), r"got \[\] and \[\]"),
    ],
)
@every_loss
def test_scores_and_labels_of_other_shapes_are_refused(loss, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(scores), torch.zeros(labels))


@every_loss
def test_a_mask_that_does_not_fit_is_refused(loss):
    scores = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"must be bool \[2, 3\], got torch.bool \[2\]"):
        loss(scores, scores, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must be bool \[2, 3\], got torch.int64 \[2, 3\]"):
        loss(scores, scores, torch.ones(2, 3, dtype=torch.int64))
