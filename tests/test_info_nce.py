"""InfoNCE: values by hand and in loops, masks, number types, refusals."""

from __future__ import annotations

from functools import partial
from math import exp, log

import pytest
import torch

from e2rank_rag.losses import (
    info_nce_loss,
    poly1_softmax_loss,
    softmax_ce_loss,
)

float64 = partial(torch.tensor, dtype=torch.float64)

POLY1 = partial(poly1_softmax_loss, epsilon=0.7)

seeds = pytest.mark.parametrize("seed", range(4))


def random_vectors(seed, queries=4, documents=9, dim=6):
    """Unit vectors, positives and a mask, which here and there leaves out the positive."""
    torch.manual_seed(seed)
    q = torch.nn.functional.normalize(torch.randn(queries, dim, dtype=torch.float64), dim=1)
    d = torch.nn.functional.normalize(torch.randn(documents, dim, dtype=torch.float64), dim=1)
    return q, d, torch.randint(documents, (queries,)), torch.rand(queries, documents) < 0.6


def info_nce_by_loops(queries, documents, positives, temperature, mask):
    values = []
    for i, query in enumerate(queries.tolist()):
        logits = [
            sum(a * b for a, b in zip(query, document, strict=True)) / temperature
            for document in documents.tolist()
        ]
        positive = int(positives[i])
        others = [j for j in range(len(logits)) if j != positive and mask[i][j]]
        total = exp(logits[positive]) + sum(exp(logits[j]) for j in others)
        values.append(-log(exp(logits[positive]) / total))
    return sum(values) / len(values)


@pytest.mark.parametrize("documents", [1, 2, 16])
def test_info_nce_of_equal_documents_is_the_log_of_their_number(documents):
    queries, vectors = torch.ones(3, 4) / 2, torch.ones(documents, 4) / 2
    value = info_nce_loss(queries, vectors, torch.zeros(3, dtype=torch.int64), temperature=0.03)
    assert value.item() == pytest.approx(log(documents), abs=1e-6)


def test_info_nce_of_two_documents_is_a_logistic_loss():
    queries = float64([[1.0, 0.0]])
    documents = float64([[0.6, 0.8], [0.8, 0.6]])
    value = info_nce_loss(queries, documents, torch.tensor([0]), temperature=0.1)
    assert value.item() == pytest.approx(log(1 + exp((0.8 - 0.6) / 0.1)), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.03, 1.0])
@seeds
def test_info_nce_agrees_with_its_definition_in_loops(seed, temperature):
    queries, documents, positives, mask = random_vectors(seed)
    loss = partial(info_nce_loss, queries, documents, positives, temperature=temperature)
    for given, used in ((None, torch.ones_like(mask)), (mask, mask)):
        expected = info_nce_by_loops(queries, documents, positives, temperature, used)
        assert loss(mask=given).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@seeds
def test_info_nce_is_the_softmax_loss_of_one_relevant_document(seed):
    queries, documents, positives, mask = random_vectors(seed)
    labels = torch.nn.functional.one_hot(positives, len(documents))
    mask |= labels.bool()
    torch.testing.assert_close(
        info_nce_loss(queries, documents, positives, temperature=0.2, mask=mask),
        softmax_ce_loss(queries @ documents.T / 0.2, labels, mask),
        rtol=1e-12,
        atol=1e-15,
    )


@seeds
def test_info_nce_without_a_document_is_info_nce_with_it_masked_out(seed):
    queries, documents, positives, _ = random_vectors(seed)
    more = torch.cat([documents, documents[positives]])
    mask = torch.ones(len(queries), len(more), dtype=torch.bool)
    mask[:, len(documents) :] = False
    torch.testing.assert_close(
        info_nce_loss(queries, more, positives, temperature=0.05, mask=mask),
        info_nce_loss(queries, documents, positives, temperature=0.05),
        rtol=1e-12,
        atol=1e-15,
    )


def test_info_nce_counts_the_positive_whatever_the_mask_says():
    queries, documents, positives, mask = random_vectors(0)
    loss = partial(info_nce_loss, queries, documents, positives, temperature=0.05)
    rows = torch.arange(len(queries))
    mask[rows, positives] = False
    without = loss(mask=mask)
    assert not mask[rows, positives].any()
    mask[rows, positives] = True
    assert without == loss(mask=mask)
    assert loss(mask=torch.zeros_like(mask)).item() == 0


@seeds
def test_the_order_of_the_documents_does_not_matter_to_info_nce(seed):
    queries, documents, positives, mask = random_vectors(seed)
    order = torch.randperm(len(documents))
    torch.testing.assert_close(
        info_nce_loss(
            queries,
            documents[order],
            order.argsort()[positives],
            temperature=0.05,
            mask=mask[:, order],
        ),
        info_nce_loss(queries, documents, positives, temperature=0.05, mask=mask),
        rtol=1e-12,
        atol=1e-15,
    )


@seeds
def test_the_gradient_of_info_nce_is_that_of_its_value(seed):
    queries, documents, positives, mask = random_vectors(seed, documents=5, dim=3)
    assert torch.autograd.gradcheck(
        lambda q, d: info_nce_loss(q, d, positives, temperature=0.5, mask=mask),
        (queries.requires_grad_(), documents.requires_grad_()),
    )


def test_a_masked_out_document_gets_no_gradient():
    queries, documents, positives, mask = random_vectors(1)
    positives.zero_()
    mask[:, 3] = False
    documents.requires_grad_()
    info_nce_loss(queries, documents, positives, temperature=0.05, mask=mask).backward()
    assert (documents.grad[3] == 0).all()
    assert documents.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_info_nce_of_narrow_vectors_is_computed_in_float32(dtype, scale):
    queries, documents, positives, mask = random_vectors(3)
    queries = (scale * queries).to(dtype).requires_grad_()
    documents = (scale * documents).to(dtype)
    loss = partial(info_nce_loss, positives=positives, temperature=0.03, mask=mask)
    value = loss(queries, documents)
    value.backward()
    assert value.dtype == torch.float32
    assert queries.grad.isfinite().all()
    torch.testing.assert_close(value, loss(queries.double(), documents.double()).float())


def test_autocast_does_not_round_the_cosines():
    queries, documents, positives, _ = random_vectors(2, dim=64)
    loss = partial(info_nce_loss, queries.float(), documents.float(), positives, temperature=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss()
    assert torch.equal(value, loss())


def test_info_nce_does_not_wait_for_the_device():
    batches = [random_vectors(seed) for seed in range(3)]

    def loss(queries, documents, positives, mask):
        return info_nce_loss(queries, documents, positives, temperature=0.05, mask=mask)

    stacked = [torch.stack(tensors) for tensors in zip(*batches, strict=True)]
    expected = torch.stack([loss(*batch) for batch in batches])
    torch.testing.assert_close(torch.vmap(loss)(*stacked), expected)


def test_info_nce_of_no_queries_is_zero():
    queries = torch.zeros(0, 4, requires_grad=True)
    documents = torch.ones(3, 4, requires_grad=True)
    value = info_nce_loss(queries, documents, torch.zeros(0).long(), temperature=0.03)
    value.backward()
    assert value.item() == 0
    assert (documents.grad == 0).all()


# cross_entropy would leave out an index of -100 in silence.
@pytest.mark.parametrize("positive", [3, -1, -100])
@pytest.mark.parametrize("masked", [False, True])
def test_a_positive_that_is_no_document_is_refused(positive, masked):
    mask = torch.ones(1, 3, dtype=torch.bool) if masked else None
    with pytest.raises((IndexError, RuntimeError), match=f"{positive} is out of bounds"):
        info_nce_loss(
            torch.ones(1, 2),
            torch.ones(3, 2),
            torch.tensor([positive]),
            temperature=1.0,
            mask=mask,
        )


def refused(message, **changed):
    given = {
        "queries": torch.zeros(2, 4),
        "documents": torch.zeros(3, 4),
        "positives": torch.zeros(2, dtype=torch.int64),
        "temperature": 0.03,
    }
    return pytest.param({**given, **changed}, message, id=message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        refused(r"\[Q, D\] and \[N, D\], got \[2, 5\] and \[3, 4\]", queries=torch.zeros(2, 5)),
        refused(r"got \[2, 4\] and \[1, 3, 4\]", documents=torch.zeros(1, 3, 4)),
        refused(r"must be int64 \[2\], .* got torch.int64 \[3\]", positives=torch.arange(3)),
        refused(r"got torch.int64 \[2, 1\]", positives=torch.zeros(2, 1, dtype=torch.int64)),
        refused(r"got torch.float32 \[2\]", positives=torch.zeros(2)),
        refused("temperature must be above 0, got 0.0", temperature=0.0),
        refused("got -0.03", temperature=-0.03),
        refused("got nan", temperature=float("nan")),
        refused(
            r"must be bool \[2, 3\], got torch.bool \[3, 2\]",
            mask=torch.ones(3, 2, dtype=torch.bool),
        ),
        refused(r"got torch.int64 \[2, 3\]", mask=torch.ones(2, 3, dtype=torch.int64)),
    ],
)
def test_info_nce_refuses_what_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        info_nce_loss(**given)
