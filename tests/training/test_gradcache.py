"""Chunks change the memory that a step takes, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from e2rank_rag.losses import info_nce_loss
from e2rank_rag.models.e2rank import Backbone
from e2rank_rag.training.gradcache import embed

ROOT = Path(__file__).parents[2]


def chunks(count, size, *, seed, length=12):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 400, (count, length), generator=draw)
    ones = torch.ones(size, length, dtype=torch.long)
    return [
        {"input_ids": part, "attention_mask": ones, "pool_slots": ones} for part in ids.split(size)
    ]


def forward(model, chunk):
    return Backbone(model)(**chunk)[:, 0]


def loss_of(queries, documents):
    """256 queries against 512 documents."""
    return info_nce_loss(queries, documents, torch.arange(256) * 2, temperature=0.05)


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture
def model(tiny_bert):
    return BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).train()


@pytest.fixture
def sides():
    return chunks(256, 32, seed=1), chunks(512, 32, seed=2)


def assert_same(found, expected, *, largest=1e-5):
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.1
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=largest, msg=name)


def test_chunks_give_the_gradients_of_the_batch_that_keeps_everything(model, sides):
    """At batch 256, with dropout."""
    torch.manual_seed(0)
    loss_of(*(torch.cat([forward(model, c) for c in side]) for side in sides)).backward()
    expected, after = gradients(model), torch.get_rng_state()
    torch.manual_seed(0)
    loss_of(*(embed(model, side) for side in sides)).backward()
    assert_same(gradients(model), expected)
    assert torch.equal(torch.get_rng_state(), after)  # the next step draws the same dropout too
    torch.manual_seed(1)
    loss_of(*(embed(model, side) for side in sides)).backward()
    with pytest.raises(AssertionError):
        assert_same(gradients(model), expected, largest=1e-2)


def test_chunks_give_the_gradients_of_two_passes(model, sides):
    """GradCache as its paper writes it down: vectors without a graph, the gradient at each of them,
    and a second pass for the product of the two."""
    torch.manual_seed(0)
    states, vectors = [], []
    for chunk in [*sides[0], *sides[1]]:
        states.append(torch.get_rng_state())
        with torch.no_grad():
            vectors.append(forward(model, chunk))
    cached = torch.cat(vectors).requires_grad_()
    loss_of(cached[:256], cached[256:]).backward()
    for chunk, state, at in zip([*sides[0], *sides[1]], states, cached.grad.split(32), strict=True):
        torch.set_rng_state(state)
        (forward(model, chunk) * at).sum().backward()
    expected = gradients(model)
    torch.manual_seed(0)
    loss_of(*(embed(model, side) for side in sides)).backward()
    assert_same(gradients(model), expected)


def test_without_dropout_chunks_give_the_gradients_of_one_forward_pass(model, sides):
    model.eval()
    loss_of(*(embed(model, side) for side in sides)).backward()
    found = gradients(model)
    whole = [[{k: torch.cat([c[k] for c in side]) for k in side[0]}] for side in sides]
    loss_of(*(embed(model, side) for side in whole)).backward()
    assert_same(found, gradients(model))


# The new name is not known to the first releases of transformers 5.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_layers_may_be_recomputed_inside_of_chunks(model, sides):
    torch.manual_seed(0)
    loss_of(*(embed(model, side) for side in sides)).backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    loss_of(*(embed(model, side) for side in sides)).backward()
    assert_same(gradients(model), expected)


@pytest.mark.slow
def test_chunks_of_32_take_less_than_a_third_of_the_memory():
    """At batch 256, each in a process of its own."""
    taken = []
    for size in (256, 32):
        command = [sys.executable, "-m", "tests.step_memory", str(size)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        taken.append(float(done.stdout))
    assert taken[1] < taken[0] / 3
