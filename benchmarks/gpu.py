"""E2Rank on a GPU at the sizes of Qwen3: encoding, a listwise prompt and a stage-2 training step.

    python benchmarks/gpu.py [0.6B 4B 8B] [--device cuda] [--json gpu.json]

Weights are random, in bfloat16: a model of this shape costs the same with any weights. Every
measurement is taken with flash attention and without (PyTorch's flash and math kernels), in turns,
and beside it stands its share of the matrix peak of the same device, measured in the same call.

- encode: 100 documents of 350 tokens, in batches as the library makes them.
- prompt: one listwise prompt of 20 documents of 350 tokens, 7,168 tokens in all.
- step: one list of 16 such documents and its prompt through one model, InfoNCE and twice RankNet,
  backwards with gradient checkpointing, and AdamW. Its operations are those of three forward
  passes; what checkpointing computes again does not count.

What does not fit into memory is recorded as such. So far this has run on a CPU only, with tiny
shapes (tests/bench/test_gpu_script.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModel, PreTrainedModel, Qwen3Config

from e2rank_rag.bench.flops import forward_flops
from e2rank_rag.bench.machine import this_machine
from e2rank_rag.bench.pairs import Timed, alternate, ratio, spread, timed
from e2rank_rag.bench.peak import gflops
from e2rank_rag.losses import info_nce_loss, ranknet_loss
from e2rank_rag.models.e2rank import Backbone
from e2rank_rag.models.runtime import batch_tokens, torch_device

SHARED = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
SHAPES: dict[str, dict[str, int]] = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        **SHARED,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        **SHARED,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        **SHARED,
    },
}
"""The layers of Qwen3-0.6B, -4B and -8B, as their config.json has them."""

KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}


@dataclass(frozen=True)
class Sizes:
    """How much is computed; lengths in tokens. peak: rows of the peak's matrices."""

    documents: int = 100
    document_tokens: int = 350
    prompt_tokens: int = 7168
    list_documents: int = 16
    rounds: int = 5
    peak: int = 8192
    peak_seconds: float = 1.0


def measured(shape: Mapping[str, int], device: str, sizes: Sizes) -> dict[str, Any]:
    """Seconds, shares of the peak and ratios of one shape, by what is computed."""
    where = torch_device(device)
    peak = gflops("bfloat16", sizes.peak, sizes.peak_seconds, str(where))
    with where:
        config = Qwen3Config(**shape)
        model = AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    documents = [sizes.document_tokens] * sizes.documents
    whole_list = [sizes.document_tokens] * sizes.list_documents + [sizes.prompt_tokens]
    cases: dict[str, tuple[Callable[[], object], int]] = {
        "encode": (partial(encode, model, sizes), forward_flops(config, documents)),
        "prompt": (partial(prompt, model, sizes), forward_flops(config, [sizes.prompt_tokens])),
        "step": (training_step(model, sizes), 3 * forward_flops(config, whole_list)),
    }
    result: dict[str, Any] = {"parameters": model.num_parameters(), "peak_gflops": peak}
    for name, (call, flops) in cases.items():
        try:
            result[name] = _case(call, flops, peak, where, sizes.rounds)
        except torch.OutOfMemoryError:
            result[name] = "out of memory"
            torch.cuda.empty_cache()
    return result


def _case(
    call: Callable[[], object], flops: int, peak: float, device: torch.device, rounds: int
) -> dict[str, Any]:
    """One call with each kernel in turns."""

    def with_kernel(kernel: SDPBackend) -> Timed:
        def finished() -> None:
            with sdpa_kernel(kernel):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return timed(finished)

    sides = {name: partial(with_kernel, kernel) for name, kernel in KERNELS.items()}
    for side in sides.values():
        side()
    found = alternate(sides, rounds)
    seconds = {name: [each[name].wall for each in found] for name in sides}
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "gflop": flops / 1e9,
        "share_of_peak": {
            name: flops / median(values) / 1e9 / peak for name, values in seconds.items()
        },
        "math_over_flash": ratio(found, "flash", "math"),
    }


def _vectors(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    """Unit vectors [rows, D] of random tokens, pooled at the last one."""
    ids = torch.randint(model.config.vocab_size, (rows, length), device=model.device)
    slots = torch.zeros_like(ids)
    slots[:, -1] = 1
    vectors: Tensor = Backbone(model)(ids, torch.ones_like(ids), slots)[:, 0]
    return vectors


@torch.inference_mode()
def encode(model: PreTrainedModel, sizes: Sizes) -> None:
    """All documents, in batches of as many tokens as the library takes at once."""
    model.eval()
    rows = max(1, batch_tokens(model.device) // sizes.document_tokens)
    for begin in range(0, sizes.documents, rows):
        _vectors(model, min(rows, sizes.documents - begin), sizes.document_tokens)


@torch.inference_mode()
def prompt(model: PreTrainedModel, sizes: Sizes) -> None:
    """One listwise prompt."""
    model.eval()
    _vectors(model, 1, sizes.prompt_tokens)


def training_step(model: PreTrainedModel, sizes: Sizes) -> Callable[[], None]:
    """A call that takes one step of stage 2; the optimizer's state is there from the first on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=model.device.type == "cuda")
    labels = torch.arange(sizes.list_documents, 0, -1, device=model.device)[None]

    def step() -> None:
        model.train()
        model.activation_checkpointing_enable()
        documents = _vectors(model, sizes.list_documents, sizes.document_tokens)
        query = _vectors(model, 1, sizes.prompt_tokens)
        first = torch.zeros(1, dtype=torch.long, device=model.device)
        loss = info_nce_loss(query, documents, first, temperature=0.03)
        loss = loss + 2.0 * ranknet_loss(query @ documents.T / 0.03, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    shapes = arguments.shapes or list(SHAPES)
    if unknown := set(shapes) - SHAPES.keys():
        parser.error(f"no shape {', '.join(sorted(unknown))}; there is: {', '.join(SHAPES)}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --device cpu takes hours for these shapes")
    machine = this_machine()
    if arguments.device.startswith("cuda"):
        machine["device"] = torch.cuda.get_device_name(arguments.device)
    result: dict[str, Any] = {"machine": machine, "shapes": {}}
    for name in shapes:
        result["shapes"][name] = measured(SHAPES[name], arguments.device, Sizes())
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(result["shapes"][name], indent=2))


if __name__ == "__main__":
    main()
