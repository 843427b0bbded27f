"""oneDNN computes what `nn.Linear` computes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from e2rank_rag.models import cpu
from e2rank_rag.models.cpu import FEW_ROWS, OneDnnLinear, has_bfloat16, pack, use_onednn
from e2rank_rag.models.runtime import torch_dtype


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, FEW_ROWS, FEW_ROWS + 1])
def test_packed_weights_give_the_same_outputs(models, dtype, rows):
    plain, fast = (model.to(dtype) for model in models)
    pack(fast)
    assert all(fast[place].packed is not None for place in (0, 2))
    assert list(fast.state_dict()) == list(plain.state_dict())
    with torch.inference_mode():
        tensor = torch.randn(rows, 48, dtype=dtype)
        error = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(fast(tensor), plain(tensor), rtol=0, atol=error)


def test_a_large_model_keeps_its_weights_once(models, monkeypatch):
    monkeypatch.setattr(cpu, "MOST_PACKED", 48 * 96)
    pack(models[1])
    assert models[1][0].packed is None


def test_auto_is_bfloat16_exactly_where_the_processor_has_it():
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("this system does not list its processor's flags")
    known = flags.read_text().split()
    expected = bool({"amx_bf16", "avx512_bf16", "bf16"} & set(known))
    assert has_bfloat16() is expected
    dtype = torch_dtype("auto", torch.device("cpu"))
    assert dtype == (torch.bfloat16 if expected else torch.float32)
