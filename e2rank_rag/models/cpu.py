"""float32 linear layers through oneDNN.

PyTorch sends float32 matrix products on x86 to MKL, which does not use all that AMD processors can
do; oneDNN computes the same products, in float32 too. `docs/performance.md` says what encoding as a
whole gains by it, together with the batching.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneDnnLinear(nn.Linear):
    """`nn.Linear` that computes by oneDNN in inference mode; parameters and state are unchanged."""

    def forward(self, input: Tensor) -> Tensor:
        # The operator has no gradient, so training takes the ordinary way.
        if not torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], None
        )
        return output


def use_onednn(model: nn.Module) -> None:
    """Let a model's plain linear layers compute by oneDNN, where this build of PyTorch has it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
