"""Linear layers for bfloat16 on a CPU, with weights laid out once as the processor's kernels want them.

A plain Linear lays them out again in every call, which costs the more the fewer rows there are to compute.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import GELUActivation

from blip2cap.models.blip2.cpu import has_onednn
from blip2cap.models.blip2.replace_linears import replace_linears

_ROWS = 16
"""The number of rows to lay out for. Measured with 16 and 2056: the layout, and the time, are the same."""


class PackedLinear(nn.Module):
    """A Linear whose weight only oneDNN can read; bfloat16, for inference."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = ("none", "")
        """What is done to the outputs while they are at hand: oneDNN's name for it, and the variant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] for [..., in_features]."""
        name, variant = self.activation
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], variant)
        return y


def pack(network: nn.Module) -> int:
    """Pack every plain bfloat16 Linear in place, and return how many; the rest is left alone.

    An OPT's lm_head shares its weight with the embedding, which stays as it is: it gets a copy.
    """
    if not _can_pack():
        return 0
    num_packed = replace_linears(network, lambda linear: PackedLinear(linear) if _is_packable(linear.weight) else None)
    for module in network.modules():
        _fuse_activation(module)
    return num_packed


def _fuse_activation(mlp: nn.Module) -> None:
    """Let the first Linear of a feed-forward block do the activation that follows it: one pass over memory less."""
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


def _can_pack() -> bool:
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return (
        has_onednn()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _is_packable(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
