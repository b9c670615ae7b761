"""Linear layers for bfloat16 on a CPU, whose weights are packed once for the processor's kernels.

A plain Linear packs its weight again in every call, which takes most of the time if there are few rows.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import GELUActivation

from blip2cap.models.blip2.linear_layers import replace_linears
from blip2cap.models.cpu_features import has_onednn

_ROWS = 16
"""Number of rows to pack for. Measured with 16 and 2056: the layout and the time are the same."""


class PackedLinear(nn.Module):
    """A Linear in bfloat16 for inference, whose weight only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = ("none", "")
        """Activation function applied to the output: oneDNN's name of it, and its variant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] for [..., in_features]."""
        name, variant = self.activation
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], variant)
        return y


def pack(network: nn.Module) -> int:
    """Replace every plain bfloat16 Linear on the CPU by a packed one, and return the number of replaced layers.

    The lm_head of OPT, which shares its weight with the embedding, gets a copy; the embedding does not change.
    """
    if not can_pack():
        return 0

    def make(linear: nn.Linear) -> PackedLinear | None:
        weight = linear.weight
        return PackedLinear(linear) if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" else None

    num_packed = replace_linears(network, make)
    for module in network.modules():
        _fuse_activation(module)
    return num_packed


def _fuse_activation(mlp: nn.Module) -> None:
    """Move the activation function of a feed-forward block into its first Linear, which saves a pass over memory."""
    first, activation = getattr(mlp, "fc1", None), getattr(mlp, "activation_fn", None)
    if not isinstance(first, PackedLinear):
        return
    if isinstance(activation, nn.ReLU):
        first.activation = ("relu", "")
    elif isinstance(activation, GELUActivation) and activation.act is nn.functional.gelu:
        first.activation = ("gelu", "none")
    else:
        return
    mlp.activation_fn = nn.Identity()


def can_pack() -> bool:
    """Return True if this CPU and this torch have the kernels."""
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return (
        has_onednn()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
