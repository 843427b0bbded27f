"""oneDNN computes what `nn.Linear` computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from e2rank_rag.models.cpu import OneDnnLinear, use_onednn


class Other(nn.Linear):
    """A linear layer of somebody else's, for instance an adapter's."""


@pytest.fixture
def models():
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 32, bias=False))
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    return plain, fast


@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (3, 5, 48), (2, 64, 48)])
def test_outputs_equal_those_of_linear(models, shape):
    plain, fast = models
    tensor = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(fast(tensor), plain(tensor), atol=1e-5, rtol=1e-5)


def test_inputs_that_are_not_contiguous_are_read_rightly(models):
    plain, fast = models
    tensor = torch.randn(48, 9).T
    assert not tensor.is_contiguous()
    with torch.inference_mode():
        torch.testing.assert_close(fast(tensor), plain(tensor), atol=1e-5, rtol=1e-5)


def test_gradients_work_outside_inference_mode(models):
    plain, fast = models
    tensor = torch.randn(4, 48)
    for model in (plain, fast):
        model(tensor).sum().backward()
    torch.testing.assert_close(fast[0].weight.grad, plain[0].weight.grad)


def test_weights_changed_after_a_call_are_used(models):
    _, fast = models
    tensor = torch.randn(4, 48)
    with torch.inference_mode():
        fast(tensor)
    with torch.no_grad():
        fast[2].weight.zero_()
    with torch.inference_mode():
        assert not fast(tensor).any()


def test_state_is_unchanged(models):
    plain, fast = models
    assert list(fast.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fast.state_dict())
    assert [type(module) for module in fast] == [OneDnnLinear, nn.GELU, OneDnnLinear]
    assert isinstance(fast[0], nn.Linear)


def test_only_plain_linear_layers_are_changed():
    model = nn.Sequential(nn.Linear(4, 4), Other(4, 4), nn.LayerNorm(4))
    use_onednn(model)
    assert [type(module) for module in model] == [OneDnnLinear, Other, nn.LayerNorm]


def test_autocast_takes_the_ordinary_way(models):
    _, fast = models
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(torch.randn(2, 48)).dtype == torch.bfloat16
