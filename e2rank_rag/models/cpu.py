"""float32 linear layers through oneDNN.

On x86 PyTorch gives float32 matrix products to MKL, which does not use all of an AMD processor.
oneDNN computes the same products, in float32 too. Alone it makes encoding documents 1.02 times and
single queries 1.28 times as fast (MiniLM, two threads, AMD EPYC; `benchmarks/onednn_linear.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneDnnLinear(nn.Linear):
    """`nn.Linear` through oneDNN in inference mode; parameters and state dict are unchanged."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        # The operator has no gradient, so training uses the ordinary one.
        if not torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], None
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
