"""Linear layers through oneDNN, and what the processor can do.

On x86 PyTorch gives float32 matrix products to MKL, which does not use all of an AMD processor.
oneDNN computes the same products, in float32 too. Alone it makes encoding documents 1.02 times and
single queries 1.28 times as fast (MiniLM, two threads, AMD EPYC; `benchmarks/onednn_linear.py`).
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 512
"""Most rows (tokens of a batch) that a packed weight is used for."""

MOST_PACKED = 100_000_000
"""Most numbers of a model's linear layers that are kept twice."""


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16: AMX, AVX512-BF16, or bfloat16 on Arm.

    Others convert every number first, which costs more than it saves.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class OneDnnLinear(nn.Linear):
    """`nn.Linear` through oneDNN in inference mode; parameters and state dict are unchanged.

    packed: the weight as oneDNN reads it. Without it, every call rearranges the weight first, which
        is much of the time of a short text. Longer inputs do not gain.
    """

    packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        # The operator has no gradient, so training uses the ordinary one.
        if not torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        few = input.numel() <= FEW_ROWS * self.in_features
        weight = self.packed if few and self.packed is not None else self.weight
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, weight, self.bias, "none", [], None
        )
        return output


def use_onednn(model: nn.Module) -> None:
    """Let the plain linear layers of a model use oneDNN, if this build of PyTorch has it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


def pack(model: nn.Module) -> None:
    """Keep the weights of a small model's oneDNN layers packed too, which stay as they are."""
    layers = [module for module in model.modules() if isinstance(module, OneDnnLinear)]
    if sum(layer.weight.numel() for layer in layers) > MOST_PACKED:
        return
    with torch.inference_mode():
        for layer in layers:
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, None)
