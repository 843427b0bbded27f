"""benchmarks/gpu.py runs, here with a tiny shape on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from transformers import Qwen3Config

from e2rank_rag.bench.flops import forward_flops

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
}


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_encoding_prompt_and_step_are_measured_with_both_kernels(gpu):
    sizes = gpu.Sizes(
        documents=3,
        document_tokens=5,
        prompt_tokens=9,
        list_documents=2,
        rounds=1,
        peak=8,
        peak_seconds=0.0,
    )
    result = gpu.measured(SHAPE, "cpu", sizes)
    assert json.loads(json.dumps(result)) == result
    config = Qwen3Config(**SHAPE)
    flops = {
        "encode": forward_flops(config, [5] * 3),
        "prompt": forward_flops(config, [9]),
        "step": 3 * forward_flops(config, [5, 5, 9]),
    }
    for name, count in flops.items():
        case = result[name]
        assert case["gflop"] == count / 1e9
        assert case["seconds"].keys() == case["share_of_peak"].keys() == {"flash", "math"}
        assert len(case["math_over_flash"]["pairs"]) == 1


@pytest.mark.parametrize(("name", "billions"), [("0.6B", 0.6), ("4B", 4.0), ("8B", 7.6)])
def test_the_shapes_have_the_weights_of_their_names(gpu, name, billions):
    config = Qwen3Config(**gpu.SHAPES[name])
    layers = forward_flops(config, [1]) / 2  # one token attends to itself: next to nothing
    embeddings = config.vocab_size * config.hidden_size
    assert (layers + embeddings) / 1e9 == pytest.approx(billions, rel=0.02)
